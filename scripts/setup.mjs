// Installs the dependencies when they are not those of the lock file, and programs that are missing; then compiles.
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

/**
 * Has root on Debian install programs that are missing. It goes on without those that cannot be had.
 * @param programs as scripts/install-tools.sh knows them; all of them when there are none
 */
export function installTools(...programs) {
  if (process.env.PVNET_NO_INSTALL) return;
  spawnSync('bash', ['scripts/install-tools.sh', ...programs], { cwd: root, stdio: 'inherit' });
}

export function setUp() {
  if (!installed()) {
    run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error']);
    copyFileSync(lock, installedLock);
  }
  buildWasm(root);
  run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', '.']);
}
