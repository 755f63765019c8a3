import { latin1, latin1Bytes } from './latin1.js';

/**
 * What a node holds. Short values are text, each character a byte: a string takes a fifth of the memory of
 * a Uint8Array, and is one object instead of two.
 */
export type Value = string | Uint8Array;

/** Longer values are a Uint8Array. */
const TEXT_MAX = 32;
/** A power of two. */
const SHARED = 1 << 12;

/** Texts that were made last, by hash: stores hold few different names and values, and these many times. */
const shared: string[] = new Array(SHARED).fill('');

/** The text of bytes [start, end): the one that was made before, when it is known. */
export function sharedText(bytes: Uint8Array, start: number, end: number): string {
  let hash = end - start;
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i], 0x01000193);
  const slot = (hash ^ (hash >>> 15)) & (SHARED - 1);
  const known = shared[slot];
  if (isText(known, bytes, start, end)) return known;
  const text = latin1(bytes, start, end);
  shared[slot] = text;
  return text;
}

/** Whether bytes [start, end) are this text. */
export function isText(text: string, bytes: Uint8Array, start: number, end: number): boolean {
  if (text.length !== end - start) return false;
  for (let i = start; i < end; i++) if (bytes[i] !== text.charCodeAt(i - start)) return false;
  return true;
}

/** A value of its own from bytes [start, end). */
export function takeValue(bytes: Uint8Array, start: number, end: number): Value {
  return end - start <= TEXT_MAX ? sharedText(bytes, start, end) : bytes.slice(start, end);
}

/** The value's bytes; not to be changed. */
export function valueBytes(value: Value): Uint8Array {
  return typeof value === 'string' ? latin1Bytes(value) : value;
}
