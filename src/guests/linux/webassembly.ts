/** The part of the JavaScript API to WebAssembly that is used here; the type libraries in use lack it. */
export interface WebAssemblyApi {
  Module: {
    new (bytes: Uint8Array): WebAssemblyModule;
    exports(module: WebAssemblyModule): { name: string; kind: string }[];
  };
  compile(bytes: Uint8Array): Promise<WebAssemblyModule>;
  instantiate(
    bytes: Uint8Array,
    imports: Record<string, unknown>,
  ): Promise<{ instance: WebAssemblyInstance }>;
  instantiate(module: WebAssemblyModule, imports: Record<string, unknown>): Promise<WebAssemblyInstance>;
}

/** Compiled code; it can be posted to other threads, which then share it. */
export type WebAssemblyModule = object;

export interface WebAssemblyInstance {
  readonly exports: Record<string, unknown>;
}

export interface WebAssemblyMemory {
  readonly buffer: SharedArrayBuffer;
  /** @returns pages of 64 KiB that it had before */
  grow(pages: number): number;
}

export interface WebAssemblyTable {
  set(index: number, value: unknown): void;
}

export interface WebAssemblyGlobal {
  value: number;
}

export const webAssembly = (globalThis as unknown as { WebAssembly: WebAssemblyApi }).WebAssembly;
