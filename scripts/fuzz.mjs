// npm run fuzz [-- --cases N --seed S --path P]: set up, then attack the data path's two ends with mutated rings.
import { commandLine, wholeNumber, wrong } from './arguments.mjs';
import { run, setUp } from './setup.mjs';

const USAGE = `usage: npm run fuzz [-- --cases N --seed S --path fast|slow]
Attacks netback and netfront with random and mutated rings; what goes wrong is printed with how to see it again.
  --cases N  how many (1000000)
  --seed S   where the random numbers begin (the time)
  --path P   all hosts with netback's fast path, or all without (every other one)
`;
const { values } = commandLine(USAGE, {
  cases: { type: 'string', default: '1000000' },
  seed: { type: 'string', default: String(Date.now() & 0x7fffffff) },
  path: { type: 'string', default: 'both' },
});
const cases = wholeNumber(values, 'cases', 1, USAGE);
const seed = wholeNumber(values, 'seed', 0, USAGE);
if (!['fast', 'slow', 'both'].includes(values.path))
  wrong(`--path ${values.path}: there are fast and slow`, USAGE);
setUp();
run(
  process.execPath,
  ['--enable-source-maps', 'dist/test/fuzz/main.js', cases, seed, values.path].map(String),
);
