// A TCP transfer with a checksum, run inside guests: "serve PORT", then "send HOST PORT BYTES".
import { createHash } from 'node:crypto';
import { createConnection, createServer } from 'node:net';

/** What either end prints when it is done. */
export interface TransferReport {
  readonly bytes: number;
  readonly sha256: string;
  readonly seconds: number;
}

const CHUNK = 1 << 20;

function report(bytes: number, sha256: string, started: number): void {
  process.stdout.write(
    `${JSON.stringify({ bytes, sha256, seconds: (performance.now() - started) / 1000 })}\n`,
  );
}

function serve(port: number): void {
  const server = createServer(socket => {
    server.close();
    const started = performance.now();
    const hash = createHash('sha256');
    let bytes = 0;
    socket.on('data', chunk => {
      hash.update(chunk);
      bytes += chunk.length;
    });
    socket.on('end', () => {
      report(bytes, hash.digest('hex'), started);
      socket.end();
    });
  });
  server.listen(port, () => process.stdout.write('listening\n'));
}

function send(host: string, port: number, bytes: number): void {
  const socket = createConnection({ host, port });
  const hash = createHash('sha256');
  const chunk = Buffer.alloc(CHUNK);
  // Content that differs from chunk to chunk and within one; what it is does not matter.
  for (let i = 0; i < CHUNK; i += 4) chunk.writeUInt32LE(Math.imul(i, 2654435761) >>> 0, i);
  let sent = 0;
  let started = 0;
  const more = (): void => {
    while (sent < bytes) {
      const piece = Buffer.from(chunk.subarray(0, Math.min(CHUNK, bytes - sent)));
      if (piece.length >= 8) piece.writeDoubleLE(sent, 0);
      hash.update(piece);
      sent += piece.length;
      if (!socket.write(piece)) {
        socket.once('drain', more);
        return;
      }
    }
    socket.end();
  };
  socket.once('connect', () => {
    started = performance.now();
    more();
  });
  socket.once('close', () => report(sent, hash.digest('hex'), started));
  socket.on('error', error => {
    process.stderr.write(`${error.message}\n`);
    process.exit(1);
  });
  socket.resume();
}

const [mode, ...rest] = process.argv.slice(2);
if (mode === 'serve') serve(Number(rest[0]));
else if (mode === 'send') send(rest[0], Number(rest[1]), Number(rest[2]));
else {
  process.stderr.write('usage: tcp-transfer serve PORT | send HOST PORT BYTES\n');
  process.exitCode = 2;
}
