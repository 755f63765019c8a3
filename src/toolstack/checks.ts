import { ToolstackError } from './error.js';

/**
 * Checks what was read from a file that anybody may have written.
 * @param where what a message starts with: the file, and the way to the value in it
 * @throws ToolstackError EINVAL
 */
export type Check = (value: unknown, where: string) => void;

export function refuse(where: string, what: string): never {
  throw new ToolstackError('EINVAL', `${where}: ${what}`);
}

const SHOWN_MAX = 60;

/** A value in a message; of what may be large, only what it is. */
export function shown(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object' && value !== null) return 'an object';
  const text = String(JSON.stringify(value));
  return text.length > SHOWN_MAX ? `${text.slice(0, SHOWN_MAX)}…` : text;
}

/** @param what as in "a number from 1 to 8" */
export function that(is: (value: unknown) => boolean, what: string): Check {
  return (value, where) => {
    if (value === undefined) refuse(where, 'it is missing');
    if (!is(value)) refuse(where, `${shown(value)} is not ${what}`);
  };
}

export function whole(low: number, high: number): Check {
  const is = (value: unknown) => Number.isInteger(value) && Number(value) >= low && Number(value) <= high;
  return that(is, `a whole number from ${low} to ${high}`);
}

/** @param is tells of each string whether it is one; all are by default */
export function string(is: (text: string) => boolean = () => true, what = 'a string'): Check {
  return that(value => typeof value === 'string' && is(value), what);
}

export const bool: Check = that(value => typeof value === 'boolean', 'true or false');

export function oneOf(values: readonly string[]): Check {
  return string(text => values.includes(text), `one of ${values.join(', ')}`);
}

/** One that may be absent. */
export function optional(check: Check): Check {
  return (value, where) => {
    if (value !== undefined) check(value, where);
  };
}

export function list(check: Check): Check {
  return (value, where) => {
    that(Array.isArray, 'a list')(value, where);
    for (const [index, item] of (value as unknown[]).entries()) check(item, `${where}[${index}]`);
  };
}

/** A list with so many items, each of its own kind. */
export function tuple(...checks: readonly Check[]): Check {
  return (value, where) => {
    that(Array.isArray, 'a list')(value, where);
    const items = value as unknown[];
    if (items.length !== checks.length) refuse(where, `it has ${items.length} items, not ${checks.length}`);
    for (const [index, check] of checks.entries()) check(items[index], `${where}[${index}]`);
  };
}

/** An object with these keys and no other. */
export function object(keys: Readonly<Record<string, Check>>): Check {
  return (value, where) => {
    that(given => shown(given) === 'an object', 'an object')(value, where);
    const given = value as Record<string, unknown>;
    for (const key of Object.keys(given)) {
      if (!Object.hasOwn(keys, key)) refuse(where, `nothing is known of ${shown(key)}`);
    }
    for (const [key, check] of Object.entries(keys)) check(given[key], `${where}: ${key}`);
  };
}

/** No two items may have the same. @param what it is that `of` gives */
export function distinct<T>(
  items: readonly T[],
  of: (item: T) => unknown,
  what: string,
  where: string,
): void {
  const seen = new Set<unknown>();
  for (const [index, item] of items.entries()) {
    const value = of(item);
    if (seen.has(value)) refuse(`${where}[${index}]`, `another one has the ${what} ${shown(value)}`);
    seen.add(value);
  }
}
