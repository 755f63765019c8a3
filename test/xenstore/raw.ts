import { XS_HEADER_SIZE } from '../../src/abi/xs-wire.js';
import type { ByteStream } from '../../src/platform/platform.js';

export interface RawMessage {
  type: number;
  reqId: number;
  /** The payload, a character a byte. */
  text: string;
}

/** A message, with a length of its own choice. */
export function message(
  type: number,
  payload: string,
  options: { reqId?: number; txId?: number; length?: number } = {},
) {
  const body = Buffer.from(payload, 'latin1');
  const bytes = Buffer.alloc(XS_HEADER_SIZE + body.length);
  bytes.writeUInt32LE(type, 0);
  bytes.writeUInt32LE(options.reqId ?? 1, 4);
  bytes.writeUInt32LE(options.txId ?? 0, 8);
  bytes.writeUInt32LE((options.length ?? body.length) >>> 0, 12);
  body.copy(bytes, XS_HEADER_SIZE);
  return bytes;
}

/** A client that sends what it wants and keeps what it gets. */
export class RawClient {
  readonly messages: RawMessage[] = [];
  isClosed = false;
  #input = Buffer.alloc(0);

  constructor(readonly stream: ByteStream) {
    stream.onData(bytes => {
      this.#input = Buffer.concat([this.#input, bytes]);
      this.#parse();
    });
    stream.onClose(() => {
      this.isClosed = true;
    });
  }

  send(type: number, payload: string, options: Parameters<typeof message>[2] = {}): void {
    this.stream.write(message(type, payload, options));
  }

  /** The texts of what came, and forgets it. */
  take(): string[] {
    return this.messages.splice(0).map(({ text }) => text.replaceAll('\0', '|'));
  }

  #parse(): void {
    while (this.#input.length >= XS_HEADER_SIZE) {
      const length = this.#input.readUInt32LE(12);
      if (this.#input.length < XS_HEADER_SIZE + length) return;
      this.messages.push({
        type: this.#input.readUInt32LE(0),
        reqId: this.#input.readUInt32LE(4),
        text: this.#input.toString('latin1', XS_HEADER_SIZE, XS_HEADER_SIZE + length),
      });
      this.#input = this.#input.subarray(XS_HEADER_SIZE + length);
    }
  }
}
