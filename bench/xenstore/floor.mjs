// The floor: a server on Node's own sockets that looks at nothing. It answers a READ with ten bytes and all
// else with OK. What a server on Node's net module cannot be faster than.
// With `map` it looks up what is asked for in a Map by path, and nothing else: no checks, no tree, no
// watches. How much dearer a store of Node's own becomes when it is large.
import { rmSync } from 'node:fs';
import { createServer } from 'node:net';

const HEADER = 16;
const READ = 2;
const VALUE = Buffer.from('0123456789');
const OK = Buffer.from('OK\0');
const values = process.argv[3] === 'map' ? new Map() : null;

/** The answer to a request of this type and payload. */
function answer(type, payload) {
  if (values === null) return type === READ ? VALUE : OK;
  const stop = payload.indexOf(0);
  const path = payload.latin1Slice(0, stop);
  if (type === READ) return values.get(path) ?? VALUE;
  values.set(path, Buffer.from(payload.subarray(stop + 1)));
  return OK;
}

rmSync(process.argv[2], { force: true });
createServer(socket => {
  let rest = Buffer.alloc(0);
  socket.on('error', () => {});
  socket.on('data', chunk => {
    const bytes = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk;
    const replies = [];
    let at = 0;
    while (bytes.length - at >= HEADER) {
      const next = at + HEADER + bytes.readUInt32LE(at + 12);
      if (next > bytes.length) break;
      const header = Buffer.from(bytes.subarray(at, at + HEADER));
      const payload = answer(header.readUInt32LE(0), bytes.subarray(at + HEADER, next));
      header.writeUInt32LE(payload.length, 12);
      replies.push(header, payload);
      at = next;
    }
    rest = bytes.subarray(at);
    if (replies.length > 0) socket.write(Buffer.concat(replies));
  });
}).listen(process.argv[2]);
