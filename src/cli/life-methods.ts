import { lstatSync, mkdtempSync, readFileSync, renameSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { netbackOf } from '../netback/netback.js';
import { ToolstackError } from '../toolstack/error.js';
import type { Host } from '../toolstack/host.js';
import {
  type HostImage,
  MayRunElsewhere,
  parseDomainImage,
  restoreDomain,
  sendDomain,
  storeHost,
  unsavedOf,
} from '../toolstack/save.js';
import { type CallContext, ConnectionLost, RpcClient, type RpcRegistry } from './rpc.js';

/** What the methods of a domain's life take and give. */
export interface LifeMethods {
  suspend: { params: { domain: string }; result: null };
  resume: { params: { domain: string; cancelled?: boolean }; result: null };
  /** `file` is absolute: the host writes it. */
  save: { params: { file: string; leaveRunning?: boolean }; result: { domains: string[]; notes: string[] } };
  migrate: { params: { domain: string; to: string }; result: { domid: number; notes: string[] } };
  /**
   * What a host asks of the one that its domain moves to. The image, which can be large, is in a file: whoever removes that has
   * the domain, so that it never runs at both. An event tells that it runs, before its vifs are connected.
   */
  receive: { params: { file: string }; event: { domid: number }; result: { domid: number; notes: string[] } };
  'vif-carrier': { params: { domain: string; devid: number; up: boolean }; result: null };
}

/** Writes a file that only this user may read. One of that name stays as it was until the new one is complete. */
function writePrivate(file: string, text: string): void {
  const there = lstatSync(file, { throwIfNoEntry: false });
  const unfinished = there === undefined || there.isFile() ? `${file}.${process.pid}` : file;
  try {
    writeFileSync(unfinished, text, { mode: 0o600 });
    if (unfinished !== file) renameSync(unfinished, file);
  } catch (error) {
    if (unfinished !== file) rmSync(unfinished, { force: true });
    throw error;
  }
}

/** Removes the file of a domain's image. @returns false when it was removed already */
function take(file: string): boolean {
  try {
    unlinkSync(file);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/**
 * What the other host answers, unless the domain is destroyed here before that host has taken it.
 * @throws ToolstackError ESRCH then, MayRunElsewhere when it has taken it and is heard of no more; what `answer` is rejected with
 */
function unlessTakenBack<T>(
  answer: Promise<T>,
  file: string,
  name: string,
  destroyed: AbortSignal,
): Promise<T> {
  const takenBack = new Promise<never>((_, reject) => {
    destroyed.addEventListener('abort', () => {
      if (take(file)) reject(new ToolstackError('ESRCH', `the domain ${name} was destroyed`));
    });
  });
  const answered = answer.catch(error => {
    // It has no answer to give any more, and must not start the domain later, either.
    if (take(file) || !(error instanceof ConnectionLost)) throw error;
    const lost = `the connection was lost while ${name} started there: it stays suspended here`;
    throw new MayRunElsewhere('ECONNRESET', `${lost}; destroy it if it runs there, or else resume it`);
  });
  return Promise.race([takenBack, answered]);
}

/** Has the other host take a domain. @returns what it says once that runs there, and what it has to say of it in the end */
function startThere(
  client: RpcClient,
  file: string,
): { runs: Promise<LifeMethods['receive']['event']>; notes: Promise<string[]> } {
  let told: (event: unknown) => void = () => {};
  const answer = client.call<LifeMethods['receive']['result']>('receive', { file }, event => told(event));
  const runs = new Promise<LifeMethods['receive']['event']>((resolve, reject) => {
    told = event => resolve(event as LifeMethods['receive']['event']);
    answer.then(resolve, reject);
  });
  const notes = answer.then(
    ({ notes }) => notes,
    error => [String(error.message)],
  );
  return { runs, notes };
}

/** Registers what the commands of a domain's life call. @param down ends the host */
export function registerLifeMethods(registry: RpcRegistry, host: Host, down: () => void): void {
  const register = <N extends keyof LifeMethods>(
    name: N,
    method: (params: LifeMethods[N]['params'], context: CallContext) => Promise<LifeMethods[N]['result']>,
  ): void => registry.register(name, method);

  register('suspend', async ({ domain }) => {
    await host.suspend(host.find(domain));
    return null;
  });
  register('resume', async ({ domain, cancelled }) => {
    const hosted = host.find(domain);
    await host.resume(hosted, { cancelled: cancelled === true });
    await host.settled(hosted);
    return null;
  });
  register('save', async ({ file, leaveRunning }) => {
    const domains = [...host.domains];
    const notes = domains.flatMap(unsavedOf);
    const write = (image: HostImage): void => {
      try {
        writePrivate(String(file), `${JSON.stringify(image)}\n`);
      } catch (error) {
        const { code, message } = error as NodeJS.ErrnoException;
        throw new ToolstackError('EIO', `${file} cannot be written (${code ?? message}); all goes on`);
      }
    };
    await storeHost(host, write, leaveRunning ? 'go on' : 'end');
    if (!leaveRunning) down();
    return { domains: domains.map(({ config }) => config.name), notes };
  });
  register('migrate', async ({ domain, to }) => {
    const client = await RpcClient.connect(String(to));
    const folder = mkdtempSync(join(tmpdir(), 'pvnet-migrate-'));
    const file = join(folder, 'image.json');
    try {
      const hosted = host.find(domain);
      const notes = unsavedOf(hosted);
      let domid = 0;
      await sendDomain(host, hosted, async (image, destroyed) => {
        writeFileSync(file, JSON.stringify(image), { mode: 0o600 });
        const there = startThere(client, file);
        ({ domid } = await unlessTakenBack(there.runs, file, hosted.config.name, destroyed));
        notes.push(...(await there.notes));
      });
      return { domid, notes };
    } finally {
      client.close();
      rmSync(folder, { recursive: true, force: true });
    }
  });
  register('receive', async ({ file }, { emit }) => {
    const image = parseDomainImage(readFileSync(String(file), 'utf8'), String(file));
    const beforeStart = (): void => {
      if (take(String(file))) return;
      throw new ToolstackError('ESRCH', `the domain ${image.config.name} was destroyed where it came from`);
    };
    const hosted = await restoreDomain(host, image, { beforeStart });
    const { domid } = hosted.domain;
    const event: LifeMethods['receive']['event'] = { domid };
    emit(event);
    const waiting = await host.settled(hosted);
    const notes = waiting.map(vif => `vif ${vif.devid}: ${host.waitingFor(hosted, vif)}`);
    return { domid, notes };
  });
  register('vif-carrier', async ({ domain, devid, up }) => {
    const hosted = host.find(domain);
    host.requireFree(hosted);
    const { domain: xen, config } = hosted;
    const device = host.dom0.xenbus.backend.devices.get(`backend/vif/${xen.domid}/${devid}`);
    const netback = device === undefined ? undefined : netbackOf(device);
    if (netback === undefined) {
      throw new ToolstackError(
        'ENODEV',
        `the domain ${config.name} has no vif ${devid} with its backend in domain 0`,
      );
    }
    await netback.setCarrier(up === true);
    return null;
  });
}
