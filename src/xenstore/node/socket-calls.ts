import koffi from 'koffi';
import { ERRNO } from '../../abi/errno.js';
import {
  CStruct,
  EPOLL_CTL_ADD,
  EPOLL_CTL_DEL,
  EPOLL_CTL_MOD,
  EPOLL_EVENT_DATA,
  EPOLL_EVENT_SIZE,
  errno,
  F_SETFD,
  libc,
  O_CLOEXEC,
  watchReadable,
} from '../../platform/linux/libc.js';
import { XenStoreError } from '../error.js';

/** sys/socket.h and sys/epoll.h, of Linux. */
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
export const EPOLLOUT = 4;
const SUN_PATH_BYTES = 108;
const BACKLOG = 512;

/** Nothing to read, or no room to write, for now. */
export const WOULD_BLOCK = -1;
/** The other end is gone. */
export const BROKEN = -2;

interface C {
  socket(family: number, type: number, protocol: number): number;
  bind(fd: number, address: Uint8Array, length: number): number;
  listen(fd: number, backlog: number): number;
  accept4(fd: number, address: null, length: null, flags: number): number;
  recv(fd: number, to: number, length: number, flags: number): number;
  send(fd: number, from: number, length: number, flags: number): number;
  execv(path: string, argv: (string | null)[]): number;
}

let loaded: C | null = null;

function c(): C {
  if (loaded !== null) return loaded;
  const library = koffi.load(null);
  loaded = {
    socket: library.func('socket', 'int', ['int', 'int', 'int']),
    bind: library.func('bind', 'int', ['int', 'void *', 'uint']),
    listen: library.func('listen', 'int', ['int', 'int']),
    accept4: library.func('accept4', 'int', ['int', 'void *', 'void *', 'int']),
    recv: library.func('recv', 'intptr_t', ['int', 'uintptr_t', 'size_t', 'int']),
    send: library.func('send', 'intptr_t', ['int', 'uintptr_t', 'size_t', 'int']),
    execv: library.func('execv', 'int', ['str', 'str *']),
  };
  return loaded;
}

/** Whether sockets can be served by system calls of our own; elsewhere Node's net does it. */
export function hasSocketCalls(): boolean {
  return process.platform === 'linux';
}

function checked(result: number, what: string): number {
  if (result >= 0) return result;
  const number = errno();
  if (number === ERRNO.EACCES || number === ERRNO.EPERM) {
    throw new XenStoreError('EACCES', `${what}: no permission; --socket names another place`);
  }
  if (number === ERRNO.EADDRINUSE) throw new XenStoreError('EADDRINUSE', `${what}: it is there already`);
  throw new XenStoreError('EIO', `${what} failed (errno ${number})`);
}

/** A non-blocking socket that listens on `path`. @returns its file descriptor */
export function listenUnix(path: string): number {
  const fd = checked(c().socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'making a socket');
  const address = new Uint8Array(2 + SUN_PATH_BYTES);
  address[0] = AF_UNIX;
  address.set(Buffer.from(path), 2);
  try {
    checked(c().bind(fd, address, address.length), path);
    checked(c().listen(fd, BACKLOG), path);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return fd;
}

/** The next client, WOULD_BLOCK when there is none, or BROKEN without a file descriptor left for it: it is still there then. */
export function accept(listener: number): number {
  const client = c().accept4(listener, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return client >= 0 ? client : failure();
}

export function closeFd(fd: number): void {
  libc().close(fd);
}

/** Lets a file descriptor live on in the program that `execute` starts. */
export function keepOverExec(fd: number): void {
  checked(libc().fcntl(fd, F_SETFD, 0), 'keeping a file descriptor');
}

/** Runs another program in the place of this one. @throws XenStoreError when it cannot */
export function execute(path: string, args: string[]): never {
  checked(c().execv(path, [path, ...args, null]), `running ${path}`);
  throw new XenStoreError('EIO', `${path} was not run`);
}

/** @returns bytes received, WOULD_BLOCK, or BROKEN */
export function receive(fd: number, to: number, length: number): number {
  const received = c().recv(fd, to, length, MSG_DONTWAIT);
  return received > 0 ? received : received < 0 ? failure() : BROKEN;
}

/** @returns bytes sent, WOULD_BLOCK, or BROKEN */
export function send(fd: number, from: number, length: number): number {
  const sent = c().send(fd, from, length, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent >= 0 ? sent : failure();
}

function failure(): number {
  const number = errno();
  return number === ERRNO.EAGAIN || number === ERRNO.EINTR ? WOULD_BLOCK : BROKEN;
}

/** Many file descriptors, waited for at once. */
export class Epoll {
  readonly fd = checked(libc().epollCreate1(O_CLOEXEC), 'making an epoll instance');
  readonly #capacity = 128;
  readonly #events = new CStruct(this.#capacity * EPOLL_EVENT_SIZE);
  readonly #one = new CStruct(EPOLL_EVENT_SIZE);
  #unwatch: (() => void) | null = null;

  /** Calls `onReady` from the event loop while anything is ready. */
  watch(onReady: () => void): void {
    this.#unwatch = watchReadable(this.fd, onReady);
  }

  add(fd: number, events: number): void {
    this.#control(EPOLL_CTL_ADD, fd, events);
  }

  change(fd: number, events: number): void {
    this.#control(EPOLL_CTL_MOD, fd, events);
  }

  remove(fd: number): void {
    this.#control(EPOLL_CTL_DEL, fd, 0);
  }

  /** Calls `visit` for what is ready now. @returns how many file descriptors were */
  poll(visit: (fd: number, events: number) => void): number {
    const { address, view } = this.#events;
    const count = libc().epollWait(this.fd, address, this.#capacity, 0);
    for (let i = 0; i < count; i++) {
      const at = i * EPOLL_EVENT_SIZE;
      visit(view.getInt32(at + EPOLL_EVENT_DATA, true), view.getUint32(at, true));
    }
    return count;
  }

  close(): void {
    this.#unwatch?.();
    closeFd(this.fd);
  }

  #control(operation: number, fd: number, events: number): void {
    const { address, view } = this.#one;
    view.setUint32(0, events, true);
    view.setInt32(EPOLL_EVENT_DATA, fd, true);
    checked(libc().epollCtl(this.fd, operation, fd, address), 'waiting for a socket');
  }
}
