import { close, open, read, write } from 'node:fs';
import { XS, XS_HEADER_SIZE } from '../../abi/xs-wire.js';
import type { ByteStream } from '../../platform/platform.js';
import { XenStoreError } from '../error.js';
import { put32 } from '../output.js';

const CHUNK_BYTES = 8192;

/**
 * XenStore through the domain's kernel: /dev/xen/xenbus. The kernel takes one message a write, and a read
 * gives whatever bytes there are.
 */
export function connectDevice(path = '/dev/xen/xenbus'): ByteStream {
  return new DeviceStream(path);
}

class DeviceStream implements ByteStream {
  #fd = -1;
  #queue: Uint8Array[] = [];
  #writing = false;
  #closing = false;
  #ended = false;
  #failure: XenStoreError | undefined;
  #onData: ((bytes: Uint8Array) => void) | null = null;
  #onClose: ((error?: Error) => void) | null = null;

  constructor(readonly path: string) {
    open(path, 'r+', (error, fd) => {
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
    write(this.#fd, next, 0, next.length, null, (error, written) => {
      this.#writing = false;
      if (error) {
        this.#end(new XenStoreError('EIO', `${this.path}: ${error.message}`));
        return;
      }
      if (written === next.length) this.#queue.shift();
      else this.#queue[0] = next.subarray(written);
      this.#write();
    });
  }

  #read(): void {
    const chunk = new Uint8Array(CHUNK_BYTES);
    read(this.#fd, chunk, 0, chunk.length, null, (error, length) => {
      if (this.#closing || this.#ended) this.#end(undefined);
      else if (error) this.#end(new XenStoreError('EIO', `${this.path}: ${error.message}`));
      else if (length === 0) this.#end(undefined);
      else {
        this.#onData?.(chunk.subarray(0, length));
        this.#read();
      }
    });
  }

  #end(failure: XenStoreError | undefined): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#failure = failure;
    if (this.#fd >= 0) close(this.#fd, () => {});
    this.#onClose?.(failure);
  }
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
