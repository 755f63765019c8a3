import {
  EMPTY_BLOCK,
  EXTERN,
  I32,
  join,
  OP,
  readCode,
  readFunctionExports,
  readFunctionNames,
  readFunctionTypes,
  readImports,
  readSections,
  readVector,
  SECTION,
  sharedLimits,
  signed,
  unsigned,
  WasmReader,
  writeSections,
} from './wasm.js';

/** The one version of the package `v86` that this patch was made for. */
export const V86_VERSION = '0.5.462+g5f9a90f';

/**
 * What patched code asks the host, as the argument of the import `io_port_read32`: x86 ports end at
 * 0xffff, so numbers from here on cannot be meant for a device.
 */
export const HOOK = {
  first: 0x1000_0000,
  /** CPUID. Nonzero: the host has set the registers. */
  cpuid: 0x1000_0000,
  /** WRMSR and RDMSR. Nonzero: done. */
  wrmsr: 0x1000_0001,
  rdmsr: 0x1000_0002,
  /** An invalid opcode, VMCALL among them. Nonzero: it was a hypercall, and the instruction is done. */
  invalidOpcode: 0x1000_0003,
  /** The processor can take an interrupt, and there may be an event. Answers the vector, or 0 for none. */
  upcall: 0x1000_0004,
} as const;

/**
 * Globals that the patch adds and exports: 32-bit, mutable, 0 at first. They are addresses in the module's memory, and
 * must be set before it runs: of a word that is not zero when events wait for the guest; of its vcpu_info's byte
 * evtchn_upcall_pending; and of a word for each guest-physical page, its number XOR the number of the page to use in its
 * place.
 */
export const XEN_GLOBALS = ['xen_events', 'xen_upcall', 'xen_pages'] as const;

/** The import that carries hooks. */
const HOOK_IMPORT = 'io_port_read32';

/** Instructions whose functions get a chance to be ours first. They are exported. */
const BEFORE = [
  { export: 'instr_0FA2', hook: HOOK.cpuid },
  { export: 'instr_0F30', hook: HOOK.wrmsr },
  { export: 'instr_0F32', hook: HOOK.rdmsr },
] as const;

/** Functions known by their path in the Rust source only: ends of mangled names in the name section. */
const TRIGGER_UD = '3cpu3cpu10trigger_ud';
const ACKNOWLEDGE_IRQ = '3cpu3pic19pic_acknowledge_irq';
const PAGE_WALK = '3cpu3cpu12do_page_walk';

/**
 * In do_page_walk, where all ways to find a physical page have met and local 2 holds its address, before
 * the test for the VGA hole (addresses & ~0x1ffff of 0xa0000):
 * if (!side_effects) { … local 3 = 32; if (local 2 & ~0x1ffff) != 0xa0000 …
 */
// biome-ignore format: one instruction a line
const AFTER_TRANSLATION = [
  OP.local_get, 4,
  OP.br_if, 0,
  OP.i32_const, 32,
  OP.local_set, 3,
  OP.local_get, 2,
  OP.i32_const, ...signed(~0x1ffff),
  OP.i32_and,
  OP.i32_const, ...signed(0xa0000),
  OP.i32_ne,
];

/** The module is not the one that the patch was made for. */
export class V86PatchError extends Error {
  constructor(message: string) {
    super(`${message}; the patch was made for v86 ${V86_VERSION}: see docs/linux-guests.md, "A new v86"`);
    this.name = 'V86PatchError';
  }
}

/** Where the patch takes hold, for the test that watches over it. */
export interface PatchSites {
  /** Function index by what is hooked there. */
  readonly functions: Readonly<Record<string, number>>;
  /** Byte offset of the physical address's site in do_page_walk. */
  readonly translationAt: number;
}

/**
 * Makes v86.wasm a machine that a hypervisor can serve: hooks CPUID, the MSRs, VMCALL, interrupt
 * acknowledgement into the host through the import `io_port_read32`, has physical addresses looked up in a table, and
 * makes its memory shared, so that every thread may reach the guest's RAM.
 *
 * A hooked function's body moves to the end of the code section, and a trampoline takes its place.
 *
 * @param maximumPages most pages of 64 KiB that the memory may grow to
 * @throws V86PatchError when a call site is not where it was
 */
export function patchV86(
  module: Uint8Array,
  maximumPages: number,
): { module: Uint8Array<ArrayBuffer>; sites: PatchSites } {
  const sections = readSections(module);
  const section = (id: number) => {
    const found = sections.find(candidate => candidate.id === id);
    if (found === undefined) throw new V86PatchError(`v86.wasm has no section ${id}`);
    return found;
  };
  const imports = readImports(section(SECTION.import).body);
  const exported = readFunctionExports(section(SECTION.export).body);
  const names = readFunctionNames(sections);
  const types = readFunctionTypes(section(SECTION.function).body);
  const code = readCode(section(SECTION.code).body);
  const globals = readVector(section(SECTION.global).body);
  const hookImport = imports.functions.get(HOOK_IMPORT);
  if (hookImport === undefined) throw new V86PatchError(`v86.wasm does not import ${HOOK_IMPORT}`);

  const firstOwn = imports.functions.size;
  const firstGlobal = imports.globals + globals.count;
  const [eventsGlobal, upcallGlobal, pagesGlobal] = XEN_GLOBALS.map((_, i) => firstGlobal + i);
  const callHook = (hook: number) => [OP.i32_const, ...signed(hook), OP.call, ...unsigned(hookImport)];

  const byExport = (name: string) => {
    const index = exported.get(name);
    if (index === undefined) throw new V86PatchError(`v86.wasm does not export ${name}`);
    return index;
  };
  const byPath = (suffix: string) => {
    const found = [...names].filter(([name]) => name.endsWith(suffix));
    if (found.length !== 1) {
      throw new V86PatchError(`v86.wasm has ${found.length} functions named …${suffix}, want one`);
    }
    return found[0][1];
  };
  /** Moves a function's body away. @returns its new index */
  const moveAway = (index: number) => {
    code.push(code[index - firstOwn]);
    types.push(types[index - firstOwn]);
    return firstOwn + code.length - 1;
  };

  const functions: Record<string, number> = {};
  const handleBefore = (index: number, hook: number) => {
    const original = moveAway(index);
    // biome-ignore format: one instruction a line
    code[index - firstOwn] = join([
      0, // locals
      ...callHook(hook),
      OP.if, EMPTY_BLOCK, OP.return, OP.end,
      OP.call, ...unsigned(original),
      OP.end,
    ]);
  };
  for (const { export: name, hook } of BEFORE) {
    functions[name] = byExport(name);
    handleBefore(functions[name], hook);
  }
  functions[TRIGGER_UD] = byPath(TRIGGER_UD);
  handleBefore(functions[TRIGGER_UD], HOOK.invalidOpcode);

  // fn pic_acknowledge_irq(result: *mut Option<u8>): it is called when the processor takes interrupts, so
  // Some(callback vector) from here is what Xen injects at the same moment.
  const acknowledge = byPath(ACKNOWLEDGE_IRQ);
  functions[ACKNOWLEDGE_IRQ] = acknowledge;
  const acknowledgeOriginal = moveAway(acknowledge);
  // biome-ignore format: one instruction a line
  code[acknowledge - firstOwn] = join([
    1, 1, I32, // locals: one i32, the vector
    OP.global_get, ...unsigned(eventsGlobal), OP.i32_load, 2, 0,
    OP.global_get, ...unsigned(upcallGlobal), OP.i32_load8_u, 0, 0,
    OP.i32_or,
    OP.if, EMPTY_BLOCK,
    ...callHook(HOOK.upcall),
    OP.local_tee, 1,
    OP.if, EMPTY_BLOCK,
    OP.local_get, 0, OP.i32_const, 1, OP.i32_store8, 0, 0,
    OP.local_get, 0, OP.local_get, 1, OP.i32_store8, 0, 1,
    OP.return,
    OP.end,
    OP.end,
    OP.local_get, 0,
    OP.call, ...unsigned(acknowledgeOriginal),
    OP.end,
  ]);

  const walk = byPath(PAGE_WALK);
  functions[PAGE_WALK] = walk;
  const walkBody = code[walk - firstOwn];
  const translationAt = indexOf(walkBody, AFTER_TRANSLATION);
  // biome-ignore format: one instruction a line
  code[walk - firstOwn] = join(
    walkBody.subarray(0, translationAt),
    [
      OP.local_get, 2,
      OP.global_get, ...unsigned(pagesGlobal),
      OP.local_get, 2, OP.i32_const, 12, OP.i32_shr_u, OP.i32_const, 2, OP.i32_shl,
      OP.i32_add, OP.i32_load, 2, 0,
      OP.i32_const, 12, OP.i32_shl,
      OP.i32_xor,
      OP.local_set, 2,
    ],
    walkBody.subarray(translationAt),
  );

  section(SECTION.function).body = join(unsigned(types.length), types.flatMap(unsigned));
  section(SECTION.code).body = join(
    unsigned(code.length),
    ...code.flatMap(body => [unsigned(body.length), body]),
  );
  section(SECTION.global).body = join(
    unsigned(globals.count + XEN_GLOBALS.length),
    globals.items,
    XEN_GLOBALS.flatMap(() => [I32, 1, OP.i32_const, 0, OP.end]),
  );
  const oldExports = readVector(section(SECTION.export).body);
  section(SECTION.export).body = join(
    unsigned(oldExports.count + XEN_GLOBALS.length),
    oldExports.items,
    ...XEN_GLOBALS.map((name, i) => {
      const bytes = new TextEncoder().encode(name);
      return join(unsigned(bytes.length), bytes, [EXTERN.global], unsigned(firstGlobal + i));
    }),
  );
  shareOwnMemory(section(SECTION.memory), maximumPages);
  return { module: writeSections(sections), sites: { functions, translationAt } };
}

function indexOf(body: Uint8Array, pattern: readonly number[]): number {
  const matches: number[] = [];
  for (let at = 0; at + pattern.length <= body.length; at++) {
    if (pattern.every((byte, i) => body[at + i] === byte)) matches.push(at);
  }
  if (matches.length !== 1) {
    throw new V86PatchError(`do_page_walk has ${matches.length} places that look like the one to patch`);
  }
  return matches[0];
}

function shareOwnMemory(section: { body: Uint8Array }, maximum: number): void {
  const reader = new WasmReader(section.body);
  const count = reader.u32();
  reader.u8();
  const initial = reader.u32();
  if (count !== 1 || initial > maximum) {
    throw new V86PatchError(`v86.wasm has ${count} memories, the first of ${initial} pages: want one`);
  }
  section.body = join([1], sharedLimits(initial, maximum));
}

/**
 * The same for a module that v86 has just compiled guest code to: it imports v86's memory, which must be
 * declared shared there, too.
 * @returns a copy, in memory of its own
 */
export function shareImportedMemory(module: Uint8Array, maximumPages: number): Uint8Array<ArrayBuffer> {
  const sections = readSections(module);
  for (const section of sections) {
    if (section.id !== SECTION.import) continue;
    const reader = new WasmReader(section.body);
    for (let left = reader.u32(); left > 0; left--) {
      reader.take(reader.u32());
      reader.take(reader.u32());
      const kind = reader.u8();
      if (kind === EXTERN.memory) {
        const limits = reader.at;
        reader.u8();
        const initial = reader.u32();
        reader.at = limits;
        reader.skipLimits();
        section.body = join(
          section.body.subarray(0, limits),
          sharedLimits(initial, maximumPages),
          section.body.subarray(reader.at),
        );
        return writeSections(sections);
      }
      if (kind === EXTERN.func) reader.u32();
      else if (kind === EXTERN.table) {
        reader.u8();
        reader.skipLimits();
      } else reader.at += 2;
    }
  }
  return writeSections(sections);
}
