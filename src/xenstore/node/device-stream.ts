import { close, open, read, write } from 'node:fs';
import { XS, XS_HEADER_SIZE, XSD_ERRORS } from '../../abi/xs-wire.js';
import type { ByteStream } from '../../platform/platform.js';
import { XenStoreError } from '../error.js';
import { put32 } from '../output.js';

const CHUNK_BYTES = 8192;

/** The calls on the device, node:fs's own unless a test stands in for the kernel. */
export interface DeviceCalls {
  open: typeof open;
  read: typeof read;
  write: typeof write;
  close: typeof close;
}

/**
 * XenStore through the domain's kernel: /dev/xen/xenbus. The kernel takes one message a write, and a read
 * gives whatever bytes there are.
 *
 * Linux refuses some requests by the write's errno instead of a reply: a watch that xenstored refuses (a domU's quota
 * of them is used up), or a message that does not fit its buffer (4096 bytes with the header). Readers of the stream
 * get the reply that xenstored would have sent.
 */
export function connectDevice(
  path = '/dev/xen/xenbus',
  calls: DeviceCalls = { open, read, write, close },
): ByteStream {
  return new DeviceStream(path, calls);
}

class DeviceStream implements ByteStream {
  #fd = -1;
  #queue: Uint8Array[] = [];
  #writing = false;
  /** Bytes of the first message of the queue that the kernel has. */
  #written = 0;
  /** Replies to requests that the kernel refused, which wait for the end of a message. */
  #refusals: Uint8Array[] = [];
  /** What was read last may end inside a message. */
  #insideMessage = false;
  #closing = false;
  #ended = false;
  #failure: XenStoreError | undefined;
  #onData: ((bytes: Uint8Array) => void) | null = null;
  #onClose: ((error?: Error) => void) | null = null;

  constructor(
    readonly path: string,
    private readonly calls: DeviceCalls,
  ) {
    calls.open(path, 'r+', (error, fd) => {
      if (error) {
        this.#end(openError(error, path));
        return;
      }
      this.#fd = fd;
      this.#read();
      this.#write();
    });
  }

  write(bytes: Uint8Array): void {
    if (this.#ended || this.#closing) return;
    this.#queue.push(bytes.slice());
    this.#write();
  }

  onData(listener: (bytes: Uint8Array) => void): void {
    this.#onData = listener;
  }

  onClose(listener: (error?: Error) => void): void {
    this.#onClose = listener;
    if (this.#ended) listener(this.#failure);
  }

  /** A read that waits keeps the device open, so one more request is sent, whose reply ends it. */
  close(): void {
    if (this.#closing || this.#ended) return;
    const request = new Uint8Array(XS_HEADER_SIZE + 2);
    put32(request, 0, XS.GET_DOMAIN_PATH);
    put32(request, 4, 0xffffffff);
    put32(request, 12, 2);
    request[XS_HEADER_SIZE] = 0x30;
    this.#queue.push(request);
    this.#closing = true;
    this.#write();
  }

  #write(): void {
    const next = this.#queue[0];
    if (this.#fd < 0 || this.#writing || this.#ended || next === undefined) return;
    this.#writing = true;
    const { length } = next;
    this.calls.write(this.#fd, next, this.#written, length - this.#written, null, (error, written) => {
      this.#writing = false;
      if (error && (this.#closing || !isRefusal(error))) {
        this.#end(new XenStoreError('EIO', `${this.path}: ${error.message}`));
        return;
      }
      this.#written += written;
      if (error || this.#written === length) {
        this.#queue.shift();
        this.#written = 0;
      }
      if (error) this.#refused(next, error.code!);
      this.#write();
    });
  }

  #refused(request: Uint8Array, code: string): void {
    const body = new TextEncoder().encode(`${code}\0`);
    const reply = new Uint8Array(XS_HEADER_SIZE + body.length);
    // The ids of the request and of its transaction.
    reply.set(request.subarray(4, 12), 4);
    put32(reply, 0, XS.ERROR);
    put32(reply, 12, body.length);
    reply.set(body, XS_HEADER_SIZE);
    this.#refusals.push(reply);
    this.#giveRefusals();
  }

  #giveRefusals(): void {
    while (!this.#insideMessage && !this.#ended) {
      const reply = this.#refusals.shift();
      if (reply === undefined) return;
      this.#onData?.(reply);
    }
  }

  #read(): void {
    const chunk = new Uint8Array(CHUNK_BYTES);
    this.calls.read(this.#fd, chunk, 0, chunk.length, null, (error, length) => {
      if (this.#closing || this.#ended) this.#end(undefined);
      else if (error) this.#end(new XenStoreError('EIO', `${this.path}: ${error.message}`));
      else if (length === 0) this.#end(undefined);
      else {
        // The kernel queues whole messages: only a chunk that is full can end inside one.
        this.#insideMessage = length === chunk.length;
        this.#onData?.(chunk.subarray(0, length));
        this.#giveRefusals();
        this.#read();
      }
    });
  }

  #end(failure: XenStoreError | undefined): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#failure = failure;
    if (this.#fd >= 0) this.calls.close(this.#fd, () => {});
    this.#onClose?.(failure);
  }
}

/** Whether a write's error means that the kernel does not take this one request. */
function isRefusal(error: NodeJS.ErrnoException): boolean {
  return (XSD_ERRORS as readonly string[]).includes(error.code ?? '');
}

function openError(error: NodeJS.ErrnoException, path: string): XenStoreError {
  switch (error.code) {
    case 'ENOENT':
      return new XenStoreError(
        'ENOENT',
        `there is no ${path}: this machine does not run on Xen, or lacks xenfs`,
      );
    case 'EACCES':
    case 'EPERM':
      return new XenStoreError('EACCES', `this user may not open ${path}: run as root`);
    default:
      return new XenStoreError('EIO', `${path}: ${error.message}`);
  }
}
