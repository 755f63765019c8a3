// npm start [-- --exit]: set up, then boot a host with two guests and show what happens.
import { commandLine } from './arguments.mjs';
import { installTools, setUp } from './setup.mjs';

const USAGE = `usage: npm start [-- --exit --no-linux]
Sets up, boots a simulated Xen host with two guests and, where it can be had, a real Linux kernel as the third, sends
traffic between them, and says what happens. Goes on until Ctrl-C; the host can be looked into with "npx pvnet" meanwhile.
  --exit      end after the traffic
  --no-linux  without the Linux guest, which is fetched once
`;
const flag = { type: 'boolean', default: false };
const { values } = commandLine(USAGE, { exit: flag, 'no-linux': flag });
installTools('ip', 'nsenter', 'ping', 'iperf3');
setUp();
const { start } = await import('../dist/src/cli/start.js');
process.exit(await start({ exit: values.exit, linux: !values['no-linux'] }));
