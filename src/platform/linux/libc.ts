import koffi from 'koffi';
import { ERRNO, ErrnoError, type ErrnoName } from '../../abi/errno.js';

/** A system call failed, or the machine lacks what it needs; the message says what was tried. */
export class SystemError extends ErrnoError {}

/** asm-generic/fcntl.h */
export const O_RDWR = 2;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;
export const F_SETFD = 2;
export const FD_CLOEXEC = 1;
export const F_SETFL = 4;

/** sys/epoll.h */
export const EPOLL_CTL_ADD = 1;
export const EPOLL_CTL_DEL = 2;
export const EPOLL_CTL_MOD = 3;
export const EPOLLIN = 0x001;
/** Tell once, and nothing more until EPOLL_CTL_MOD. */
export const EPOLLONESHOT = 0x40000000;
/** struct epoll_event, which is packed on x86-64 only: its bytes, and where its data begins. */
export const EPOLL_EVENT_SIZE = process.arch === 'x64' ? 12 : 16;
export const EPOLL_EVENT_DATA = process.arch === 'x64' ? 4 : 8;

/** sys/mman.h */
export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
export const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;

/** System call numbers, the same on every architecture since Linux 5. */
const SYS_pidfd_open = 434;
const SYS_pidfd_getfd = 438;

/**
 * The calls into the C library that devices need. Addresses are plain numbers (of memory from
 * `addressOf`), so a call copies and allocates nothing. Each returns what C returns; `errno()` tells why
 * it was -1.
 */
export interface Libc {
  open(path: string, flags: number): number;
  close(fd: number): number;
  fcntl(fd: number, command: number, argument: number): number;
  /** ioctl with a pointer or an integer as its argument. */
  ioctl(fd: number, request: number, argument: number): number;
  read(fd: number, buffer: number, bytes: number): number;
  write(fd: number, buffer: number, bytes: number): number;
  /** Returns the address, or -1. */
  mmap(address: number, bytes: number, protection: number, flags: number, fd: number, offset: number): number;
  readv(fd: number, iovecs: number, count: number): number;
  writev(fd: number, iovecs: number, count: number): number;
  epollCreate1(flags: number): number;
  epollCtl(epoll: number, operation: number, fd: number, event: number): number;
  epollWait(epoll: number, events: number, count: number, timeoutMs: number): number;
  /** The CPU that the calling thread runs on. */
  schedGetcpu(): number;
  /** A file descriptor for a process. */
  pidfdOpen(pid: number): number;
  /** Duplicates file descriptor `fd` of another process into this one. */
  pidfdGetfd(pidfd: number, fd: number): number;
}

let loaded: Libc | null = null;

/** @throws SystemError ENOSYS on a system that is not Linux, or whose C library cannot be called */
export function libc(): Libc {
  loaded ??= load();
  return loaded;
}

function load(): Libc {
  if (process.platform !== 'linux') {
    throw new SystemError('ENOSYS', `devices of the machine need Linux, and this is ${process.platform}`);
  }
  const library = koffi.load(null);
  const syscall = library.func('syscall', 'long', ['long', 'long', 'long', 'long']);
  return {
    open: library.func('open', 'int', ['str', 'int']),
    close: library.func('close', 'int', ['int']),
    fcntl: library.func('fcntl', 'int', ['int', 'int', 'long']),
    ioctl: library.func('ioctl', 'int', ['int', 'ulong', 'uintptr_t']),
    read: library.func('read', 'intptr_t', ['int', 'uintptr_t', 'size_t']),
    write: library.func('write', 'intptr_t', ['int', 'uintptr_t', 'size_t']),
    mmap: library.func('mmap', 'intptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64_t']),
    readv: library.func('readv', 'intptr_t', ['int', 'uintptr_t', 'int']),
    writev: library.func('writev', 'intptr_t', ['int', 'uintptr_t', 'int']),
    epollCreate1: library.func('epoll_create1', 'int', ['int']),
    epollCtl: library.func('epoll_ctl', 'int', ['int', 'int', 'int', 'uintptr_t']),
    epollWait: library.func('epoll_wait', 'int', ['int', 'uintptr_t', 'int', 'int']),
    schedGetcpu: library.func('sched_getcpu', 'int', []),
    pidfdOpen: pid => syscall(SYS_pidfd_open, pid, 0, 0),
    pidfdGetfd: (pidfd, fd) => syscall(SYS_pidfd_getfd, pidfd, fd, 0),
  };
}

/** The number of the last call's error. */
export function errno(): number {
  return koffi.errno();
}

/** The name of an error number of Linux; those that pvnet has no name for are EIO. */
export function errnoName(number: number): ErrnoName {
  for (const name in ERRNO) if (ERRNO[name as ErrnoName] === number) return name as ErrnoName;
  return 'EIO';
}

/** @returns `result`; @throws SystemError with errno when it is negative, saying what was tried */
export function checked(result: number, what: string): number {
  if (result >= 0) return result;
  const number = errno();
  throw new SystemError(errnoName(number), `${what} failed (errno ${number})`);
}

/**
 * Where a typed array's memory lies in this process. It must not be resizable, be kept alive, and have more than 64 bytes
 * unless they are shared: fewer may move.
 */
export function addressOf(array: Uint8Array): number {
  return Number(koffi.address(array));
}

/** Calls `onReadable` from the event loop while `fd` has something to read; returns what ends that. */
export function watchReadable(fd: number, onReadable: () => void): () => void {
  const handle = koffi.node.poll(fd, { readable: true }, onReadable);
  return () => handle.close();
}

/** Memory for structs handed to C: it stays where it is. */
export class CStruct {
  readonly u8: Uint8Array;
  readonly view: DataView;
  readonly address: number;

  constructor(bytes: number) {
    const buffer = new SharedArrayBuffer(bytes);
    this.u8 = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    this.address = addressOf(this.u8);
  }
}
