import { printable } from '../xenstore/latin1.js';
import { XenbusError } from './error.js';
import type { XsOperations } from './xs.js';

/** Makes a value of a node's text; undefined when the text is not one. */
export type XenbusParser<T> = (text: string) => T | undefined;

/** A decimal number below 2^32. Unlike sscanf's %u, neither a sign nor anything behind the digits is taken. */
export const unsigned: XenbusParser<number> = text => {
  if (!/^[0-9]{1,10}$/.test(text)) return undefined;
  const value = Number(text);
  return value <= 0xffff_ffff ? value : undefined;
};

/** A signed decimal number of 32 bits. */
export const integer: XenbusParser<number> = text => {
  if (!/^-?[0-9]{1,10}$/.test(text)) return undefined;
  const value = Number(text);
  return value >= -0x8000_0000 && value <= 0x7fff_ffff ? value : undefined;
};

/** Any text, even an empty one. */
export const text: XenbusParser<string> = value => value;

/** What `gather` returns for a set of parsers. */
export type Gathered<S extends Record<string, XenbusParser<unknown>>> = {
  [K in keyof S]: Exclude<ReturnType<S[K]>, undefined>;
};

/** Joins a directory and a node's name; the directory alone when the name is empty. */
export function joinPath(dir: string, node: string): string {
  return node === '' ? dir : `${dir}/${node}`;
}

/**
 * Reads and parses one node (xenbus_scanf).
 * @throws ERANGE when the text is none that the parser takes; whatever the read throws (ENOENT …)
 */
export async function xenbusScanf<T>(
  xs: XsOperations,
  dir: string,
  node: string,
  parse: XenbusParser<T>,
): Promise<T> {
  const path = joinPath(dir, node);
  const raw = await xs.read(path);
  const value = parse(raw);
  if (value === undefined)
    throw new XenbusError('ERANGE', `${path} is "${shorten(raw)}", which does not parse`);
  return value;
}

/**
 * Reads several nodes of a directory, all or nothing (xenbus_gather).
 * @throws EINVAL naming the first node whose text does not parse; whatever the first failed read throws
 */
export async function xenbusGather<S extends Record<string, XenbusParser<unknown>>>(
  xs: XsOperations,
  dir: string,
  parsers: S,
): Promise<Gathered<S>> {
  const result: Record<string, unknown> = {};
  for (const [node, parse] of Object.entries(parsers)) {
    const path = joinPath(dir, node);
    const raw = await xs.read(path);
    const value = parse(raw);
    if (value === undefined) {
      throw new XenbusError('EINVAL', `${path} is "${shorten(raw)}", which does not parse`);
    }
    result[node] = value;
  }
  return result as Gathered<S>;
}

/** Reads a number (xenbus_read_unsigned); the default when it is missing, unreadable or no number below 2^32. */
export async function xenbusReadUnsigned(
  xs: XsOperations,
  dir: string,
  node: string,
  defaultValue: number,
): Promise<number> {
  const raw = await xs.readOptional(joinPath(dir, node));
  return (raw === undefined ? undefined : unsigned(raw)) ?? defaultValue;
}

/** A peer's text for a message or a terminal: at most 64 characters, printable. */
export function shorten(raw: string): string {
  const head = printable(raw.slice(0, 64));
  return raw.length > 64 ? `${head}…` : head;
}
