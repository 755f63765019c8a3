import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { basename, join } from 'node:path';
import { type CpioEntry, cpio, S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG } from './cpio.js';
import { elfNeeds } from './elf.js';
import { BACKEND_AGENT, INIT, POWEROFF, REBOOT, VIF_AGENT, XS } from './init-scripts.js';

/** Programs that are put in beside busybox, where they are unpacked. */
const PROGRAMS = [
  'usr/bin/iperf3',
  'sbin/ethtool',
  'usr/sbin/ethtool',
  'usr/bin/tcpdump',
  'usr/sbin/tcpdump',
];
/** Modules with everything that they depend on, by name. */
const MODULES = [
  'xen-netfront',
  'xen-netback',
  'bridge',
  'pktgen',
  'sch_fq_codel',
  'virtio_net',
  'virtio_pci',
  'ne2k-pci',
];
const LIBRARY_FOLDERS = [
  'lib/i386-linux-gnu',
  'usr/lib/i386-linux-gnu',
  'lib/i386-linux-gnu/i686/sse2',
  'usr/lib/i386-linux-gnu/systemd',
];
const FOLDERS = [
  'bin',
  'sbin',
  'dev',
  'etc',
  'lib',
  'proc',
  'sys',
  'tmp',
  'root',
  'run',
  'usr',
  'var',
  'www',
];

/** What of the initramfs is ours: the kernel takes it as a second archive behind that of the packages. */
export function ourArchive(): Uint8Array {
  const scripts = {
    init: INIT,
    'bin/xs': XS,
    'bin/vif-agent': VIF_AGENT,
    'bin/backend-agent': BACKEND_AGENT,
    'sbin/poweroff': POWEROFF,
    'sbin/reboot': REBOOT,
  };
  const mode = S_IFREG | 0o755;
  return cpio(
    Object.entries(scripts).map(([path, script]) => ({ path, mode, data: new TextEncoder().encode(script) })),
  );
}

/**
 * The initramfs of Linux guests without our init, from unpacked Debian packages: busybox, tools with their
 * libraries, and the modules of Xen's network drivers. Not compressed: unpacking it costs more, in an emulator, than reading it.
 * @param root where the packages are unpacked
 * @param applets busybox's commands
 */
export function buildInitramfs(root: string, applets: readonly string[]): Uint8Array {
  const entries = new Map<string, CpioEntry>();
  const text = (content: string) => new TextEncoder().encode(content);
  const folder = (path: string) => {
    const parts = path.split('/').slice(0, -1);
    for (let i = 1; i <= parts.length; i++) {
      const parent = parts.slice(0, i).join('/');
      if (!entries.has(parent)) entries.set(parent, { path: parent, mode: S_IFDIR | 0o755 });
    }
  };
  const add = (path: string, data: Uint8Array, permissions = 0o644) => {
    folder(path);
    entries.set(path, { path, mode: S_IFREG | permissions, data });
  };
  const link = (path: string, target: string) => {
    folder(path);
    if (!entries.has(path)) entries.set(path, { path, mode: S_IFLNK | 0o777, data: text(target) });
  };

  for (const path of FOLDERS) folder(`${path}/x`);
  // What the kernel opens for init before anything is mounted.
  entries.set('dev/console', {
    path: 'dev/console',
    mode: S_IFCHR | 0o600,
    device: { major: 5, minor: 1 },
  });
  add('etc/passwd', text('root::0:0:root:/root:/bin/sh\n'));
  add('etc/group', text('root:x:0:\n'));
  add('etc/hosts', text('127.0.0.1 localhost\n'));

  add('bin/busybox', readFileSync(join(root, 'bin/busybox')), 0o755);
  for (const applet of applets) link(`bin/${applet}`, 'busybox');

  const wanted: string[] = [];
  const need = (file: Uint8Array) => {
    const needs = elfNeeds(file);
    if (needs?.interpreter) wanted.push(basename(needs.interpreter));
    wanted.push(...(needs?.libraries ?? []));
  };
  for (const program of PROGRAMS) {
    if (!existsSync(join(root, program))) continue;
    const file = readFileSync(join(root, program));
    entries.delete(`bin/${basename(program)}`);
    add(`bin/${basename(program)}`, file, 0o755);
    need(file);
  }
  for (let name = wanted.pop(); name !== undefined; name = wanted.pop()) {
    const path = `lib/${name}`;
    if (entries.has(path)) continue;
    const found = LIBRARY_FOLDERS.map(library => join(root, library, name)).find(existsSync);
    if (found === undefined) throw new Error(`the packages that were fetched lack the library ${name}`);
    const file = readFileSync(realpathSync(found));
    add(path, file, 0o755);
    need(file);
  }
  addModules(root, add);
  return cpio([...entries.values()]);
}

function addModules(root: string, add: (path: string, data: Uint8Array) => void): void {
  const folder = join(root, 'lib/modules');
  const [release] = readdirSync(folder);
  const files = new Map<string, string>();
  for (const path of readdirSync(join(folder, release), { recursive: true }) as string[]) {
    if (path.endsWith('.ko')) files.set(moduleName(path), path);
  }
  const dependencies = new Map<string, string[]>();
  const visit = (name: string): void => {
    const path = files.get(moduleName(name));
    if (path === undefined || dependencies.has(path)) return;
    const file = readFileSync(join(folder, release, path));
    const needs = moduleDependencies(file);
    dependencies.set(
      path,
      needs.map(other => files.get(moduleName(other))!),
    );
    add(`lib/modules/${release}/${path}`, file);
    needs.forEach(visit);
  };
  MODULES.forEach(visit);
  // All that a module needs, directly or not, each behind what needs it: they are loaded from the last.
  const closure = (path: string): string[] => {
    const all = dependencies.get(path)!.flatMap(need => [need, ...closure(need)]);
    return all.filter((need, i) => all.lastIndexOf(need) === i);
  };
  const lines = [...dependencies.keys()].map(path => `${[`${path}:`, ...closure(path)].join(' ')}\n`);
  add(`lib/modules/${release}/modules.dep`, new TextEncoder().encode(lines.join('')));
}

function moduleName(path: string): string {
  return basename(path, '.ko').replaceAll('-', '_');
}

/** The names behind "depends=" in a module's information section. */
function moduleDependencies(file: Buffer): string[] {
  const at = file.indexOf('\0depends=');
  if (at < 0) return [];
  const start = at + '\0depends='.length;
  const list = file.subarray(start, file.indexOf(0, start)).toString('latin1');
  return list === '' ? [] : list.split(',');
}
