import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';

const root = new URL('../../../', import.meta.url);
const read = (path: string): string => readFileSync(new URL(path, root), 'utf8');
const { exports } = JSON.parse(read('package.json')) as { exports: Record<string, string> };
const texts = ['README.md', ...readdirSync(new URL('docs', root)).map(name => `docs/${name}`)];

test('what the documents import from the package, it exports', async () => {
  const missing: string[] = [];
  for (const text of texts) {
    for (const [, names, name] of read(text).matchAll(/import \{ ([^}]*) \} from 'pvnet\/(.*)'/g)) {
      const path = exports[`./${name}`];
      const found = path === undefined ? {} : await import(new URL(path, root).href);
      missing.push(
        ...names
          .split(', ')
          .filter(each => !(each in found))
          .map(each => `${text}: ${each}`),
      );
    }
  }
  assert.deepEqual(missing, []);
});

test('each subpath that the documents name is one of the package', () => {
  for (const text of texts) {
    for (const [, name] of read(text).matchAll(/[`']pvnet\/([a-z/]+)[`']/g)) {
      assert.ok(exports[`./${name}`] !== undefined, `${text}: pvnet/${name}`);
    }
  }
});

test('docs/library.md has a row for each subpath', () => {
  const rows = read('docs/library.md').matchAll(/^\| (.*?) \|/gm);
  const named = [...rows].flatMap(([, cell]) =>
    [...cell.matchAll(/`pvnet(\/[a-z/]+)`/g)].map(([, path]) => `.${path}`),
  );
  assert.deepEqual(named.sort(), Object.keys(exports).sort());
});
