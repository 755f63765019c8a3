/** What `--match` can look at. */
export interface VifNames {
  /** "vif5.0" */
  readonly vif: string;
  /** The domain's name, "" when it has none. */
  readonly domain: string;
  /** The bridge that the toolstack names, "" when it names none. */
  readonly bridge: string;
}

/**
 * Whether a vif is one of those that a pattern selects: `*` stands for any characters, `?` for one. The pattern is
 * held against the domain's name; with "bridge=" or "vif=" in front, against the bridge or the interface.
 */
export function matchesVif(pattern: string, names: VifNames): boolean {
  const [, kind, glob] = /^(?:(bridge|vif|domain)=)?(.*)$/s.exec(pattern) ?? [];
  const text = kind === 'bridge' ? names.bridge : kind === 'vif' ? names.vif : names.domain;
  const source = glob
    .replace(/[.+^${}()|[\]\\]/g, '\\$&')
    .replace(/\*/g, '.*')
    .replace(/\?/g, '.');
  return new RegExp(`^${source}$`, 's').test(text);
}
