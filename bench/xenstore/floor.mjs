// The floor: a server on Node's own sockets that answers every message at once with ten bytes and looks
// at nothing. What a XenStore in JavaScript on Node's net module cannot be faster than.
import { rmSync } from 'node:fs';
import { createServer } from 'node:net';

const HEADER = 16;
const REPLY = Buffer.from('0123456789');
const [path] = process.argv.slice(2);

rmSync(path, { force: true });
createServer(socket => {
  let rest = Buffer.alloc(0);
  socket.on('data', chunk => {
    const bytes = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk;
    const replies = [];
    let at = 0;
    while (bytes.length - at >= HEADER) {
      const next = at + HEADER + bytes.readUInt32LE(at + 12);
      if (next > bytes.length) break;
      const reply = Buffer.alloc(HEADER + REPLY.length);
      bytes.copy(reply, 0, at, at + 12);
      reply.writeUInt32LE(REPLY.length, 12);
      REPLY.copy(reply, HEADER);
      replies.push(reply);
      at = next;
    }
    rest = bytes.subarray(at);
    if (replies.length > 0) socket.write(Buffer.concat(replies));
  });
  socket.on('error', () => {});
}).listen(path);
