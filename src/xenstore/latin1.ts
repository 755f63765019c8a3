/** XenStore's text is bytes: each character of a string stands for the byte of the same number. */

const CHUNK = 4096;

/** The text of bytes [start, end). */
export function latin1(bytes: Uint8Array, start = 0, end = bytes.length): string {
  if (end - start <= CHUNK) return String.fromCharCode.apply(null, bytes.subarray(start, end) as never);
  let text = '';
  for (let i = start; i < end; i += CHUNK) text += latin1(bytes, i, Math.min(end, i + CHUNK));
  return text;
}

/** Writes `text` at `at`; what does not fit a byte loses its upper bits. @returns the offset behind it */
export function putLatin1(bytes: Uint8Array, at: number, text: string): number {
  for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
  return at + text.length;
}

/** A text that somebody else wrote, for a log or a terminal: what is not printable ASCII is a question mark. */
export function printable(text: string): string {
  return text.replace(/[^ -~]/g, '?');
}

export function latin1Bytes(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length);
  putLatin1(bytes, 0, text);
  return bytes;
}
