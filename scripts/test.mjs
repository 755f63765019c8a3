// npm test [-- FILTER…]: set up, then run every compiled test file whose path holds one of the filters.
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { commandLine } from './arguments.mjs';
import { installTools, root, run, setUp } from './setup.mjs';

const USAGE = `usage: npm test [-- PART…]
Sets up, and runs the tests of test/, or those whose path has one of the parts in it: npm test -- netback/ gro
`;
const { names: filters } = commandLine(USAGE, {}, null);
rmSync(join(root, 'dist/test'), { recursive: true, force: true });
installTools();
setUp();
const files = readdirSync(join(root, 'dist/test'), { recursive: true })
  .filter(name => name.endsWith('.test.js'))
  .filter(name => filters.length === 0 || filters.some(filter => name.includes(filter)))
  .sort()
  .map(name => join('dist/test', name));
if (files.length === 0) {
  console.error(`no test file matches ${filters.join(' ')}`);
  process.exit(1);
}
run(process.execPath, ['--enable-source-maps', '--test', '--test-reporter=spec', ...files]);
