// Installs the dependencies when they are not those of the lock file, then compiles.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { buildWasm } from './wasm.mjs';

export const root = fileURLToPath(new URL('..', import.meta.url));
const lock = `${root}package-lock.json`;
const installedLock = `${root}node_modules/.installed-lock.json`;

/** Runs a command in the project's root; ends this process with its status when it fails. */
export function run(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

function installed() {
  return existsSync(installedLock) && readFileSync(installedLock).equals(readFileSync(lock));
}

export function setUp() {
  if (!installed()) {
    run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error']);
    copyFileSync(lock, installedLock);
  }
  buildWasm(root);
  run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', '.']);
}
