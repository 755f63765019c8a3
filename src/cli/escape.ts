/** How the xenstore tools print values and take them: what is no printable ASCII is escaped as in C. */

const escapes: Record<number, string> = { 9: '\\t', 10: '\\n', 13: '\\r', 92: '\\\\' };
const unescapes: Record<string, number> = { t: 9, n: 10, r: 13, '\\': 92 };

export function escapeValue(value: Uint8Array): string {
  let text = '';
  for (const c of value) {
    if (c >= 0x20 && c <= 0x7e && c !== 0x5c) text += String.fromCharCode(c);
    else if (escapes[c] !== undefined) text += escapes[c];
    else text += c < 8 ? `\\${c.toString(8).padStart(3, '0')}` : `\\x${c.toString(16).padStart(2, '0')}`;
  }
  return text;
}

export function unescapeValue(text: string): Uint8Array {
  const pattern = /\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|([\s\S]))|\\$/g;
  const parts: Buffer[] = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(Buffer.from(text.slice(at, match.index)));
    at = match.index + match[0].length;
    const [, hex, octal, letter] = match;
    if (hex !== undefined) parts.push(Buffer.of(Number.parseInt(hex, 16)));
    else if (octal !== undefined) parts.push(Buffer.of(Number.parseInt(octal, 8)));
    else if (letter !== undefined) {
      parts.push(unescapes[letter] === undefined ? Buffer.from(letter) : Buffer.of(unescapes[letter]));
    }
  }
  parts.push(Buffer.from(text.slice(at)));
  return Buffer.concat(parts);
}
