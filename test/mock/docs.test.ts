import { readFileSync } from 'node:fs';
import { test } from 'node:test';

const root = new URL('../../../', import.meta.url);
const { exports } = JSON.parse(readFileSync(new URL('package.json', root), 'utf8')) as {
  exports: Record<string, string>;
};

/** The code with each `pvnet/…` as what package.json exports under that name. */
function resolved(code: string): string {
  return code.replace(/from 'pvnet\/(.*)'/g, (_, name: string) => {
    return `from '${new URL(exports[`./${name}`], root)}'`;
  });
}

for (const name of ['docs/hostile-peers.md', 'docs/library.md']) {
  const text = readFileSync(new URL(name, root), 'utf8');
  for (const [, title, code] of text.matchAll(/^## (.*?)$.*?```js\n(.*?)```/gms)) {
    test(`the example of "${title}" in ${name} runs`, async () => {
      await import(`data:text/javascript,${encodeURIComponent(resolved(code))}`);
    });
  }
}
