// npm test [-- FILTER…]: set up, then run every compiled test file whose path holds one of the filters.
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { root, run, setUp } from './setup.mjs';

rmSync(join(root, 'dist/test'), { recursive: true, force: true });
setUp();
const filters = process.argv.slice(2);
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
