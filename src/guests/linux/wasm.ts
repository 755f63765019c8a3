/** Section identifiers of a WebAssembly module (core specification, binary format). */
export const SECTION = {
  custom: 0,
  type: 1,
  import: 2,
  function: 3,
  memory: 5,
  global: 6,
  export: 7,
  code: 10,
} as const;

/** External kinds of imports and exports. */
export const EXTERN = { func: 0, table: 1, memory: 2, global: 3 } as const;

export const OP = {
  if: 0x04,
  end: 0x0b,
  br_if: 0x0d,
  return: 0x0f,
  call: 0x10,
  local_get: 0x20,
  local_set: 0x21,
  local_tee: 0x22,
  global_get: 0x23,
  i32_load: 0x28,
  i32_load8_u: 0x2d,
  i32_store8: 0x3a,
  i32_const: 0x41,
  i32_ne: 0x47,
  i32_add: 0x6a,
  i32_and: 0x71,
  i32_or: 0x72,
  i32_xor: 0x73,
  i32_shl: 0x74,
  i32_shr_u: 0x76,
} as const;

export const I32 = 0x7f;
/** The type of a block without results. */
export const EMPTY_BLOCK = 0x40;

/** A part of a module: its identifier and the bytes between its length and the next section. */
export interface Section {
  readonly id: number;
  body: Uint8Array;
}

const HEADER_BYTES = 8;
const utf8 = new TextDecoder();

/** Reads a module's bytes from front to back. */
export class WasmReader {
  constructor(
    readonly bytes: Uint8Array,
    public at = 0,
  ) {}

  get done(): boolean {
    return this.at >= this.bytes.length;
  }

  u8(): number {
    return this.bytes[this.at++];
  }

  /** An unsigned number in LEB128. */
  u32(): number {
    let value = 0;
    let shift = 0;
    for (;;) {
      const byte = this.bytes[this.at++];
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value >>> 0;
      shift += 7;
    }
  }

  take(length: number): Uint8Array {
    const start = this.at;
    this.at += length;
    return this.bytes.subarray(start, this.at);
  }

  name(): string {
    return utf8.decode(this.take(this.u32()));
  }

  /** The limits of a memory or table. */
  skipLimits(): void {
    const flags = this.u8();
    this.u32();
    if ((flags & 1) !== 0) this.u32();
  }
}

/** `value` as unsigned LEB128. */
export function unsigned(value: number): number[] {
  const out: number[] = [];
  let rest = value >>> 0;
  do {
    const byte = rest & 0x7f;
    rest >>>= 7;
    out.push(rest === 0 ? byte : byte | 0x80);
  } while (rest !== 0);
  return out;
}

/** A 32-bit `value` as signed LEB128. */
export function signed(value: number): number[] {
  const out: number[] = [];
  let rest = value | 0;
  for (;;) {
    const byte = rest & 0x7f;
    rest >>= 7;
    const sign = (byte & 0x40) !== 0;
    if ((rest === 0 && !sign) || (rest === -1 && sign)) {
      out.push(byte);
      return out;
    }
    out.push(byte | 0x80);
  }
}

export function join(...parts: readonly (Uint8Array | readonly number[])[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** The sections of a module, in order. */
export function readSections(module: Uint8Array): Section[] {
  const sections: Section[] = [];
  const reader = new WasmReader(module, HEADER_BYTES);
  while (!reader.done) {
    const id = reader.u8();
    sections.push({ id, body: reader.take(reader.u32()) });
  }
  return sections;
}

/** A module of these sections. */
export function writeSections(sections: readonly Section[]): Uint8Array<ArrayBuffer> {
  const magicAndVersion = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
  const parts = sections.flatMap(({ id, body }) => [[id, ...unsigned(body.length)], body]);
  return join(magicAndVersion, ...parts) as Uint8Array<ArrayBuffer>;
}

/** The items of a section that is a vector: how many there are, and their bytes behind the count. */
export function readVector(body: Uint8Array): { count: number; items: Uint8Array } {
  const reader = new WasmReader(body);
  const count = reader.u32();
  return { count, items: body.subarray(reader.at) };
}

/** Where imports stand in a module's index spaces. */
export interface Imports {
  readonly functions: Map<string, number>;
  readonly globals: number;
}

export function readImports(body: Uint8Array): Imports {
  const reader = new WasmReader(body);
  const functions = new Map<string, number>();
  let globals = 0;
  for (let left = reader.u32(); left > 0; left--) {
    reader.name();
    const name = reader.name();
    switch (reader.u8()) {
      case EXTERN.func:
        reader.u32();
        functions.set(name, functions.size);
        break;
      case EXTERN.table:
        reader.u8();
        reader.skipLimits();
        break;
      case EXTERN.memory:
        reader.skipLimits();
        break;
      default:
        reader.at += 2;
        globals++;
    }
  }
  return { functions, globals };
}

/** Function indexes by exported name. */
export function readFunctionExports(body: Uint8Array): Map<string, number> {
  const reader = new WasmReader(body);
  const functions = new Map<string, number>();
  for (let left = reader.u32(); left > 0; left--) {
    const name = reader.name();
    const kind = reader.u8();
    const index = reader.u32();
    if (kind === EXTERN.func) functions.set(name, index);
  }
  return functions;
}

/** Function indexes by the names in the custom section "name"; empty without one. */
export function readFunctionNames(sections: readonly Section[]): Map<string, number> {
  const names = new Map<string, number>();
  for (const { id, body } of sections) {
    if (id !== SECTION.custom) continue;
    const reader = new WasmReader(body);
    if (reader.name() !== 'name') continue;
    while (!reader.done) {
      const kind = reader.u8();
      const end = reader.u32() + reader.at;
      if (kind === 1) {
        for (let left = reader.u32(); left > 0; left--) {
          const index = reader.u32();
          names.set(reader.name(), index);
        }
      }
      reader.at = end;
    }
  }
  return names;
}

/** Type indexes of the module's own functions. */
export function readFunctionTypes(body: Uint8Array): number[] {
  const reader = new WasmReader(body);
  return Array.from({ length: reader.u32() }, () => reader.u32());
}

/** Code of the module's own functions: locals and instructions, without the length before them. */
export function readCode(body: Uint8Array): Uint8Array[] {
  const reader = new WasmReader(body);
  return Array.from({ length: reader.u32() }, () => reader.take(reader.u32()));
}

/** Limits of a shared memory (threads proposal). @param initial, maximum in pages of 64 KiB */
export function sharedLimits(initial: number, maximum: number): number[] {
  return [0x03, ...unsigned(initial), ...unsigned(maximum)];
}
