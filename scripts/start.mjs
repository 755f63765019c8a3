// npm start [-- --exit]: set up, then boot a host with two guests and show what happens.
import { setUp } from './setup.mjs';

setUp();
const { start } = await import('../dist/src/cli/start.js');
process.exit(await start(process.argv.slice(2)));
