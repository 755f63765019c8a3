import { latin1 } from './latin1.js';

/** The end of the NUL-terminated string at `start`: the index of its NUL, or -1 when there is none. */
export function stringEnd(bytes: Uint8Array, start: number, end: number): number {
  for (let i = start; i < end; i++) if (bytes[i] === 0) return i;
  return -1;
}

/** The NUL-terminated strings of a payload; null when bytes without a NUL are left at the end. */
export function strings(bytes: Uint8Array, start: number, end: number): string[] | null {
  const found: string[] = [];
  while (start < end) {
    const stop = stringEnd(bytes, start, end);
    if (stop < 0) return null;
    found.push(latin1(bytes, start, stop));
    start = stop + 1;
  }
  return found;
}

/** A domid in decimal; -1 when it is none. */
export function parseDomid(text: string): number {
  return /^[0-9]{1,5}$/.test(text) && Number(text) <= 0xffff ? Number(text) : -1;
}
