// npm run fuzz [-- --cases N --seed S]: set up, then attack the data path's two ends with mutated rings.
import { run, setUp } from './setup.mjs';

setUp();
run(process.execPath, ['--enable-source-maps', 'dist/test/fuzz/main.js', ...process.argv.slice(2)]);
