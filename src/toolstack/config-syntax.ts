import { ToolstackError } from './error.js';

/** A value in an xl configuration file, with the line that it starts in. */
export type ConfigValue =
  | { readonly kind: 'number'; readonly line: number; readonly number: number }
  | { readonly kind: 'string'; readonly line: number; readonly text: string }
  | { readonly kind: 'list'; readonly line: number; readonly items: readonly ConfigValue[] };

export interface ConfigSetting {
  readonly key: string;
  readonly line: number;
  readonly value: ConfigValue;
}

const ESCAPES: Record<string, string> = {
  n: '\n',
  t: '\t',
  r: '\r',
  a: '\x07',
  b: '\b',
  f: '\f',
  v: '\v',
  e: '\x1b',
};

/**
 * Parses xl's configuration syntax (xl.cfg(5)): `key = value` lines, where a value is a number, a string in
 * single or double quotes, or a list in brackets; `#` starts a comment. A later setting of a key replaces
 * an earlier one.
 * @param file the file's name, for messages
 * @throws ToolstackError EINVAL with file and line
 */
export function parseConfigSyntax(text: string, file: string): Map<string, ConfigSetting> {
  return new SyntaxParser(text, file).parse();
}

class SyntaxParser {
  private at = 0;
  private line = 1;

  constructor(
    private readonly text: string,
    private readonly file: string,
  ) {}

  parse(): Map<string, ConfigSetting> {
    const settings = new Map<string, ConfigSetting>();
    for (;;) {
      this.skip(true, ';');
      if (this.at === this.text.length) return settings;
      const { line } = this;
      const key = this.match(/[A-Za-z_][A-Za-z0-9_]*/y);
      if (key === null) this.fail(`${this.here()} where a key should be, as in: name = "guest1"`);
      this.skip(false);
      if (this.text[this.at] !== '=') this.fail(`${this.here()} behind "${key}", where "=" should be`, key);
      this.at++;
      this.skip(false);
      settings.set(key, { key, line, value: this.value(key) });
      this.skip(false);
      if (this.at < this.text.length && this.text[this.at] !== '\n' && this.text[this.at] !== ';') {
        this.fail(`${this.here()} behind the value, where the line should end`, key);
      }
    }
  }

  private value(key: string): ConfigValue {
    const { line } = this;
    const first = this.text[this.at];
    if (first === '"' || first === "'") return { kind: 'string', line, text: this.string(key, first) };
    if (first === '[') return { kind: 'list', line, items: this.list(key) };
    const number = this.match(/0[xX][0-9a-fA-F]+|[0-9]+/y);
    if (number === null || /[A-Za-z_]/.test(this.text[this.at] ?? '')) {
      this.fail(`${this.here()} where a value should be: a number, a "string" or a [ 'list' ]`, key);
    }
    const value = Number(number);
    if (!Number.isSafeInteger(value)) this.fail(`the number ${number} is too large`, key);
    return { kind: 'number', line, number: value };
  }

  private string(key: string, quote: string): string {
    this.at++;
    let text = '';
    for (;;) {
      const char = this.text[this.at];
      if (char === undefined || char === '\n') this.fail(`the string is not closed by ${quote}`, key);
      this.at++;
      if (char === quote) return text;
      text += char === '\\' ? this.escape(key) : char;
    }
  }

  private escape(key: string): string {
    const code = this.match(/x[0-9a-fA-F]{2}|[0-7]{1,3}/y);
    if (code !== null) {
      const value = code[0] === 'x' ? Number.parseInt(code.slice(1), 16) : Number.parseInt(code, 8);
      return String.fromCharCode(value & 0xff);
    }
    const char = this.text[this.at];
    if (char === undefined || char === '\n') this.fail('the line ends in the middle of a string', key);
    this.at++;
    if (char in ESCAPES) return ESCAPES[char];
    if (char === '\\' || char === '"' || char === "'") return char;
    this.fail(`"\\${char}" stands for no character`, key);
  }

  private list(key: string): ConfigValue[] {
    const opened = this.line;
    const items: ConfigValue[] = [];
    this.at++;
    for (;;) {
      this.skip(true);
      if (this.text[this.at] === ']') {
        this.at++;
        return items;
      }
      if (this.at === this.text.length)
        this.fail(`the list that starts in line ${opened} is not closed by "]"`, key);
      items.push(this.value(key));
      this.skip(true);
      if (this.text[this.at] === ',') this.at++;
      else if (this.text[this.at] !== ']') {
        if (this.at === this.text.length)
          this.fail(`the list that starts in line ${opened} is not closed by "]"`, key);
        this.fail(`${this.here()} in the list, where "," or "]" should be`, key);
      }
    }
  }

  /** Skips blanks and comments, and the ends of lines when `lines` is set. */
  private skip(lines: boolean, also = ''): void {
    for (; this.at < this.text.length; this.at++) {
      const char = this.text[this.at];
      if (char === '#') {
        while (this.at < this.text.length && this.text[this.at] !== '\n') this.at++;
        this.at--;
      } else if (char === '\n') {
        if (!lines) return;
        this.line++;
      } else if (char === '\\' && this.text[this.at + 1] === '\n') {
        this.at++;
        this.line++;
      } else if (char !== ' ' && char !== '\t' && char !== '\r' && (also === '' || char !== also)) {
        return;
      }
    }
  }

  private match(pattern: RegExp): string | null {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found === null) return null;
    this.at += found[0].length;
    return found[0];
  }

  private here(): string {
    const char = this.text[this.at];
    if (char === undefined) return 'the file ends';
    return char === '\n' ? 'the line ends' : `there is ${JSON.stringify(char)}`;
  }

  private fail(what: string, key?: string): never {
    const where = `${this.file}:${this.line}${key === undefined ? '' : `: ${key}`}`;
    throw new ToolstackError('EINVAL', `${where}: ${what}`);
  }
}
