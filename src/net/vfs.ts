import { NetError } from './error.js';

/** A file of a virtual tree: text made when it is read, or taken when it is written. */
export interface VirtualFile {
  readonly kind: 'file';
  /** Permission bits: 0o444, 0o644, 0o200. */
  readonly mode: number;
  /** The whole content. @throws ErrnoError as the kernel's attribute does */
  read?(): string;
  /** @throws ErrnoError as the kernel's attribute does */
  write?(value: string): void;
}

export interface VirtualDirectory {
  readonly kind: 'directory';
  /** What it holds at this moment. */
  entries(): Record<string, VirtualNode>;
}

export interface VirtualLink {
  readonly kind: 'link';
  /** Relative to the directory that holds it, or absolute. */
  readonly target: string;
}

export type VirtualNode = VirtualFile | VirtualDirectory | VirtualLink;

/** One line of a listing. */
export interface VirtualEntry {
  readonly name: string;
  readonly kind: VirtualNode['kind'];
  readonly mode: number;
  /** Of a link. */
  readonly target?: string;
}

/** Links that one path may lead through (as MAXSYMLINKS). */
const MAX_LINKS = 40;

export function file(mode: number, read?: () => string, write?: (value: string) => void): VirtualFile {
  return { kind: 'file', mode, read, write };
}

export function directory(entries: () => Record<string, VirtualNode>): VirtualDirectory {
  return { kind: 'directory', entries };
}

export function link(target: string): VirtualLink {
  return { kind: 'link', target };
}

/** A tree of files that is looked at with paths, as /sys and /proc are. */
export class VirtualTree {
  constructor(readonly root: VirtualDirectory) {}

  /**
   * The entries of a directory by name, or the one entry of a file.
   * @throws NetError ENOENT, ENOTDIR
   */
  list(path: string): VirtualEntry[] {
    const { node, name } = this.find(path);
    if (node.kind !== 'directory') return [entry(name, node)];
    return Object.entries(node.entries())
      .map(([child, childNode]) => entry(child, childNode))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** @throws NetError ENOENT, ENOTDIR, EISDIR, EACCES, or what the attribute throws */
  read(path: string): string {
    const { node } = this.find(path);
    if (node.kind === 'directory') throw new NetError('EISDIR', `${path} is a directory`);
    if (node.kind === 'link' || (node.mode & 0o444) === 0 || node.read === undefined) {
      throw new NetError('EACCES', `${path} cannot be read`);
    }
    return node.read();
  }

  /** @throws NetError ENOENT, ENOTDIR, EISDIR, EACCES for what is read-only, or what the attribute throws */
  write(path: string, value: string): void {
    const { node } = this.find(path);
    if (node.kind === 'directory') throw new NetError('EISDIR', `${path} is a directory`);
    if (node.kind === 'link' || (node.mode & 0o222) === 0 || node.write === undefined) {
      throw new NetError('EACCES', `${path} cannot be written`);
    }
    node.write(value);
  }

  /** Where a link leads, as readlink. @throws NetError ENOENT, EINVAL for what is no link */
  readLink(path: string): string {
    const { node } = this.find(path, false);
    if (node.kind !== 'link') throw new NetError('EINVAL', `${path} is no link`);
    return node.target;
  }

  private find(path: string, follow = true): { node: VirtualNode; name: string } {
    const parts = path.split('/').filter(part => part !== '' && part !== '.');
    const stack: { node: VirtualNode; name: string }[] = [{ node: this.root, name: '/' }];
    let links = 0;
    while (parts.length > 0) {
      const part = parts.shift()!;
      if (part === '..') {
        if (stack.length > 1) stack.pop();
        continue;
      }
      const { node } = stack[stack.length - 1];
      if (node.kind !== 'directory') throw new NetError('ENOTDIR', `${path}: ${part} is not in a directory`);
      const child: VirtualNode | undefined = Object.entries(node.entries()).find(
        ([name]) => name === part,
      )?.[1];
      if (child === undefined) throw new NetError('ENOENT', `${path} does not exist`);
      if (child.kind === 'link' && (follow || parts.length > 0)) {
        if (++links > MAX_LINKS) throw new NetError('ENOENT', `${path} leads through too many links`);
        if (child.target.startsWith('/')) stack.length = 1;
        parts.unshift(...child.target.split('/').filter(p => p !== '' && p !== '.'));
      } else stack.push({ node: child, name: part });
    }
    return stack[stack.length - 1];
  }
}

function entry(name: string, node: VirtualNode): VirtualEntry {
  if (node.kind === 'file') return { name, kind: 'file', mode: node.mode };
  if (node.kind === 'directory') return { name, kind: 'directory', mode: 0o755 };
  return { name, kind: 'link', mode: 0o777, target: node.target };
}
