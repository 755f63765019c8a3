const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const DT_NULL = 0;
const DT_NEEDED = 1;
const DT_STRTAB = 5;

/** What a 32-bit ELF file must have to run. */
export interface ElfNeeds {
  /** The program that loads it, or null. */
  readonly interpreter: string | null;
  /** Names of shared libraries. */
  readonly libraries: readonly string[];
}

/** @returns null for what is no 32-bit little-endian ELF file */
export function elfNeeds(file: Uint8Array): ElfNeeds | null {
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  if (file.length < 52 || view.getUint32(0) !== 0x7f454c46 || file[4] !== 1 || file[5] !== 1) return null;
  const u32 = (at: number) => view.getUint32(at, true);
  const string = (at: number) => {
    let end = at;
    while (file[end] !== 0) end++;
    return new TextDecoder().decode(file.subarray(at, end));
  };
  const programHeaders = u32(28);
  const size = view.getUint16(42, true);
  const count = view.getUint16(44, true);
  const segments = Array.from({ length: count }, (_, i) => {
    const at = programHeaders + i * size;
    return { type: u32(at), offset: u32(at + 4), address: u32(at + 8), bytes: u32(at + 16) };
  });
  const inFile = (address: number) => {
    const segment = segments.find(
      ({ type, address: start, bytes }) => type === PT_LOAD && address >= start && address < start + bytes,
    );
    return segment === undefined ? 0 : address - segment.address + segment.offset;
  };
  const interpreter = segments.find(({ type }) => type === PT_INTERP);
  const dynamic = segments.find(({ type }) => type === PT_DYNAMIC);
  const names: number[] = [];
  let strings = 0;
  if (dynamic !== undefined) {
    for (let at = dynamic.offset; at < dynamic.offset + dynamic.bytes; at += 8) {
      const tag = u32(at);
      if (tag === DT_NULL) break;
      if (tag === DT_NEEDED) names.push(u32(at + 4));
      else if (tag === DT_STRTAB) strings = inFile(u32(at + 4));
    }
  }
  return {
    interpreter: interpreter === undefined ? null : string(interpreter.offset),
    libraries: names.map(name => string(strings + name)),
  };
}
