/** The part of the JavaScript API to WebAssembly that is used here; the type libraries in use lack it. */
export interface WebAssemblyApi {
  Module: {
    new (bytes: Uint8Array): object;
    exports(module: object): { name: string; kind: string }[];
  };
  instantiate(
    bytes: Uint8Array,
    imports: Record<string, unknown>,
  ): Promise<{ instance: { exports: Record<string, unknown> } }>;
}

export interface WebAssemblyMemory {
  readonly buffer: SharedArrayBuffer;
}

export interface WebAssemblyTable {
  set(index: number, value: unknown): void;
}

export interface WebAssemblyGlobal {
  value: number;
}

export const webAssembly = (globalThis as unknown as { WebAssembly: WebAssemblyApi }).WebAssembly;
