/** UTF-8, which every JavaScript host has, though no portable type library says so. */
const host = globalThis as unknown as {
  TextEncoder: new () => { encode(text: string): Uint8Array };
  TextDecoder: new () => { decode(bytes: Uint8Array): string };
};
const encoder = new host.TextEncoder();
const decoder = new host.TextDecoder();

export function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}

export function decodeText(bytes: Uint8Array): string {
  // Decoders refuse memory that another thread may be writing.
  return decoder.decode(bytes.slice());
}
