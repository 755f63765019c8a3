import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Method, RpcRegistry, RpcServer } from '../../src/cli/rpc.js';

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

/** Hosts with control sockets of their own, in one folder. */
class Machine {
  readonly cwd = mkdtempSync(join(tmpdir(), 'pvnet-life-'));

  constructor(private readonly t: TestContext) {
    t.after(() => rmSync(this.cwd, { recursive: true, force: true }));
  }

  async start(socket: string, ...args: string[]): Promise<{ child: ChildProcess; output: string }> {
    const child = spawn(process.execPath, [MAIN, ...args, '--socket', join(this.cwd, socket)], {
      cwd: this.cwd,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.t.after(() => void child.kill('SIGKILL'));
    let output = '';
    await new Promise<void>((resolve, reject) => {
      for (const stream of [child.stdout!, child.stderr!]) {
        stream.on('data', chunk => {
          output += chunk;
          if (output.includes('ready;')) resolve();
        });
      }
      child.on('exit', () => reject(new Error(`pvnet ${args.join(' ')} ended: ${output}`)));
    });
    return { child, output };
  }

  /** As `run`, while this process does other things. @returns what it says of what went wrong */
  migrate(domain: string, from: string, to: string): Promise<string> {
    const argv = ['migrate', domain, '--to', join(this.cwd, to), '--socket', join(this.cwd, from)];
    const child = spawn(process.execPath, [MAIN, ...argv], { stdio: ['ignore', 'ignore', 'pipe'] });
    this.t.after(() => void child.kill('SIGKILL'));
    return text(child.stderr);
  }

  run(socket: string, ...args: string[]): string {
    const argv = [MAIN, ...args, '--socket', join(this.cwd, socket)];
    const { status, stdout, stderr } = spawnSync(process.execPath, argv, { cwd: this.cwd, encoding: 'utf8' });
    return status === 0 ? stdout : stderr;
  }
}

test('suspend, resume, migrate, save and restore from the command line', async t => {
  const machine = new Machine(t);
  writeFileSync(join(machine.cwd, 'a.cfg'), `name = "a"\nguest = "echo"\nvif = [ 'ip=10.0.0.1' ]\n`);
  writeFileSync(join(machine.cwd, 'b.cfg'), `name = "b"\nguest = "echo"\nvif = [ 'ip=10.0.0.2' ]\n`);
  const [one] = await Promise.all([
    machine.start('1.sock', 'up', 'a.cfg'),
    machine.start('2.sock', 'up', 'b.cfg'),
  ]);

  assert.equal(machine.run('1.sock', 'suspend', 'a'), '');
  assert.match(machine.run('1.sock', 'vif-list'), /the domain is suspended/);
  assert.match(machine.run('1.sock', 'list'), /^a .* suspended +echo/m);
  assert.match(machine.run('1.sock', 'suspend', 'a'), /EINVAL: the domain a does not run: it is suspended/);
  assert.match(machine.run('1.sock', 'shutdown', 'a'), /EINVAL: the domain a is suspended: resume it first/);
  assert.equal(machine.run('1.sock', 'resume', 'a'), '');
  assert.equal(machine.run('1.sock', 'vif-carrier', 'a', '0', 'down'), '');
  assert.match(machine.run('1.sock', 'vif-list'), /without carrier/);
  assert.equal(machine.run('1.sock', 'vif-carrier', 'a', '0', 'up'), '');

  assert.match(
    machine.run('1.sock', 'dump'),
    /^vif1\.0: carrier on, 1 queue\(s\)\n {2}queue 0 tx: 256 slots, req_prod /,
  );
  assert.match(machine.run('1.sock', 'stats', 'vif1.0'), /vif1\.0 +rxPackets +\d/);
  assert.equal(machine.run('1.sock', 'poke', 'vif1.0'), '');
  assert.match(machine.run('1.sock', 'poke', 'vif7.0'), /there is no vif vif7\.0/);
  assert.match(
    machine.run('1.sock', 'stats', 'vif7.0'),
    /^pvnet stats: ENODEV: there is no vif vif7\.0; there are: vif1\.0/,
  );

  assert.match(machine.run('1.sock', 'migrate', 'a', '--to', join(machine.cwd, '0.sock')), /pvnet migrate: /);
  assert.match(
    machine.run('1.sock', 'migrate', 'a', '--to', join(machine.cwd, '2.sock')),
    /^a is domain 2 there/,
  );
  assert.match(machine.run('2.sock', 'ping', 'b', '10.0.0.1', '-c', '1'), /answer from 10\.0\.0\.1/);
  one.child.kill('SIGTERM');

  const file = join(machine.cwd, 'host.pvnet');
  assert.match(machine.run('2.sock', 'save', '--leave-running', 'host.pvnet'), /^saved b, a/);
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.match(machine.run('2.sock', 'save', 'host.pvnet'), /^saved b, a/);
  const restored = await machine.start('3.sock', 'restore', 'host.pvnet');
  assert.match(restored.output, /domain 1: b\ndomain 2: a\n/);
  assert.match(machine.run('3.sock', 'ping', 'a', '10.0.0.2', '-c', '1'), /answer from 10\.0\.0\.2/);
  restored.child.kill('SIGTERM');
});

test('a domain that is destroyed before the host that it moves to has taken it does not start there', async t => {
  const machine = new Machine(t);
  writeFileSync(join(machine.cwd, 'a.cfg'), `name = "a"\nguest = "echo"\nvif = [ 'ip=10.0.0.1' ]\n`);
  const [, two] = await Promise.all([machine.start('1.sock', 'up', 'a.cfg'), machine.start('2.sock', 'up')]);
  two.child.kill('SIGSTOP');
  const said = machine.migrate('a', '1.sock', '2.sock');
  while (!/suspended/.test(machine.run('1.sock', 'list')));
  // Its image is on its way now.
  assert.match(machine.run('1.sock', 'suspend', 'a'), /EBUSY: the domain a is being migrated/);
  await delay(300);
  assert.equal(machine.run('1.sock', 'destroy', 'a'), '');
  two.child.kill('SIGCONT');
  assert.equal(await said, 'pvnet migrate: ESRCH: the domain a was destroyed\n');
  for (const socket of ['1.sock', '2.sock']) assert.doesNotMatch(machine.run(socket, 'list'), /^a /m);
});

test('a domain whose new host goes away goes on here, stays suspended, or is there, as that host had got', async t => {
  const machine = new Machine(t);
  writeFileSync(join(machine.cwd, 'a.cfg'), `name = "a"\nguest = "echo"\nvif = [ 'ip=10.0.0.1' ]\n`);
  await machine.start('1.sock', 'up', 'a.cfg');
  /** Moves the domain to a host that does so much, and then no more. */
  const moveTo = async (receive: Method): Promise<string> => {
    const registry = new RpcRegistry();
    registry.register('receive', (params, context) => {
      receive(params, context);
      void server.close();
      return new Promise(() => {});
    });
    const server = await RpcServer.listen(registry, join(machine.cwd, '2.sock'));
    return machine.migrate('a', '1.sock', '2.sock');
  };
  assert.match(await moveTo(() => {}), /^pvnet migrate: ECONNRESET: the host went away\n$/);
  assert.match(machine.run('1.sock', 'list'), /^a .* running +echo/m);
  assert.match(
    await moveTo(({ file }) => unlinkSync(file)),
    /^pvnet migrate: ECONNRESET: the connection was lost while a started there: it stays suspended here; /,
  );
  assert.match(machine.run('1.sock', 'list'), /^a .* suspended +echo/m);
  assert.equal(machine.run('1.sock', 'resume', 'a'), '');
  const taken = await moveTo(({ file }, { emit }) => {
    unlinkSync(file);
    emit({ domid: 7 });
  });
  assert.equal(taken, '');
  assert.doesNotMatch(machine.run('1.sock', 'list'), /^a /m);
});
