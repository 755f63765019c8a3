import { IFNAMSIZ } from './flags.js';
import { LastingMap } from './lasting-map.js';

/** Unit numbers that a `%d` can become: one bit each in a page for every bit of a byte, 8 * PAGE_SIZE. */
export const MAX_UNITS = 32768;
/** Templates whose units are tracked; others are counted anew. */
const MAX_TEMPLATES = 64;

/** The rule that a device name breaks, in words, or null for a valid one (dev_valid_name). */
export function nameProblem(name: string): string | null {
  if (name === '') return 'it is empty';
  if (name.length >= IFNAMSIZ) return `it has ${name.length} characters and may have ${IFNAMSIZ - 1}`;
  if (name === '.' || name === '..') return 'it is a directory entry';
  for (const c of name) {
    if (c === '/' || c === ':') return `it contains '${c}'`;
    if (c === ' ' || (c >= '\t' && c <= '\r') || c === '\u00a0') return 'it contains white space';
    if (c > '\u00ff') return 'it contains a character that is not one byte';
  }
  return null;
}

/** What is wrong with a name that holds a '%', or null when it has exactly one '%d'. */
export function templateProblem(template: string): string | null {
  const first = template.indexOf('%');
  if (first < 0) return null;
  if (template[first + 1] !== 'd') return "'%' must be followed by 'd'";
  if (template.indexOf('%', first + 2) >= 0) return "it has more than one '%'";
  return null;
}

/** The name for a unit, cut to the room that a name has. */
export function nameForUnit(template: string, unit: number): string {
  return template.replace('%d', String(unit)).slice(0, IFNAMSIZ - 1);
}

/** Which of 32768 units are taken, with two levels of summary so that the lowest free one is found at once. */
class UnitSet {
  private readonly words = new Int32Array(MAX_UNITS / 32);
  private readonly full = new Int32Array(MAX_UNITS / 1024);
  private top = 0;

  take(unit: number): void {
    const word = unit >>> 5;
    this.words[word] |= 1 << (unit & 31);
    if (this.words[word] !== -1) return;
    this.full[word >>> 5] |= 1 << (word & 31);
    if (this.full[word >>> 5] === -1) this.top |= 1 << (word >>> 5);
  }

  free(unit: number): void {
    const word = unit >>> 5;
    this.words[word] &= ~(1 << (unit & 31));
    this.full[word >>> 5] &= ~(1 << (word & 31));
    this.top &= ~(1 << (word >>> 5));
  }

  lowestFree(): number {
    if (this.top === -1) return -1;
    const a = lowestZero(this.top);
    const b = lowestZero(this.full[a]);
    const word = a * 32 + b;
    return word * 32 + lowestZero(this.words[word]);
  }
}

function lowestZero(bits: number): number {
  const zeros = ~bits;
  return 31 - Math.clz32(zeros & -zeros);
}

/**
 * The names in use in a namespace, and for each `%d` template in use its taken units, so that a name costs
 * the same with ten thousand devices as with none.
 */
export class Names {
  private readonly names = new LastingMap<true>();
  private readonly templates = new Map<string, UnitSet>();

  has(name: string): boolean {
    return this.names.has(name);
  }

  get size(): number {
    return this.names.size;
  }

  add(name: string): void {
    this.names.set(name, true);
    forEachUnit(name, (template, unit) => this.templates.get(template)?.take(unit));
  }

  delete(name: string): void {
    if (!this.names.delete(name)) return;
    forEachUnit(name, (template, unit) => this.templates.get(template)?.free(unit));
  }

  /** The lowest unit that is free for a template with one `%d`, or -1 when there is none. */
  lowestUnit(template: string): number {
    let units = this.templates.get(template);
    if (units === undefined) {
      units = new UnitSet();
      for (const name of this.names.keys()) {
        forEachUnit(name, (t, unit) => {
          if (t === template) units!.take(unit);
        });
      }
      if (this.templates.size === MAX_TEMPLATES) {
        this.templates.delete(this.templates.keys().next().value!);
      }
      this.templates.set(template, units);
    }
    return units.lowestFree();
  }
}

/** Every way in which a name is a template with a unit, as printf would write it (no leading zero). */
function forEachUnit(name: string, found: (template: string, unit: number) => void): void {
  for (let start = 0; start < name.length; start++) {
    if (name[start] < '0' || name[start] > '9') continue;
    for (let end = start + 1; end <= name.length; end++) {
      const last = name[end - 1];
      if (last < '0' || last > '9') break;
      if (name[start] === '0' && end > start + 1) break;
      const unit = Number(name.slice(start, end));
      if (unit >= MAX_UNITS) break;
      found(`${name.slice(0, start)}%d${name.slice(end)}`, unit);
    }
  }
}
