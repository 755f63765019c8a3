// How the cost of an operation grows with the store, and what one client's abuse costs another.
import { connect } from 'node:net';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { cpuSeconds, median, start, stop } from './servers.mjs';

const XS = { DIRECTORY: 1, READ: 2, WATCH: 4, TRANSACTION_START: 6, TRANSACTION_END: 7, WRITE: 11 };
const HEADER = 16;
const SMALL = { nodes: 4500, watches: 1000, connections: 64 };
const LARGE = { nodes: 1_000_000, watches: 10_000, connections: 1000 };
/** Children of a directory. */
const FAN = 100;

function message(type, payload, txId = 0) {
  const body = Buffer.from(payload);
  const bytes = Buffer.alloc(HEADER + body.length);
  bytes.writeUInt32LE(type, 0);
  bytes.writeUInt32LE(txId, 8);
  bytes.writeUInt32LE(body.length, 12);
  body.copy(bytes, HEADER);
  return bytes;
}

/** A connection that counts the replies it gets and forgets them. */
class Client {
  #wanted = 0;
  #done = () => {};
  #header = Buffer.alloc(HEADER);
  #have = 0;
  #skip = 0;

  constructor(path) {
    this.socket = connect(path);
    this.socket.on('error', () => {});
    this.socket.on('data', bytes => this.#count(bytes));
  }

  /** Sends messages at once; resolves when as many replies, events not counted, have come. */
  send(messages) {
    this.#wanted += messages.length;
    const done = new Promise(resolve => {
      this.#done = resolve;
    });
    this.socket.write(Buffer.concat(messages));
    return done;
  }

  close() {
    this.socket.destroy();
  }

  #count(bytes) {
    let at = 0;
    while (at < bytes.length) {
      if (this.#skip > 0) {
        const taken = Math.min(this.#skip, bytes.length - at);
        this.#skip -= taken;
        at += taken;
        continue;
      }
      const taken = Math.min(HEADER - this.#have, bytes.length - at);
      bytes.copy(this.#header, this.#have, at, at + taken);
      this.#have += taken;
      at += taken;
      if (this.#have < HEADER) return;
      this.#have = 0;
      this.#skip = this.#header.readUInt32LE(12);
      if (this.#header.readUInt32LE(0) !== 15) this.#wanted--;
    }
    if (this.#wanted === 0 && this.#skip === 0 && this.#have === 0) this.#done();
  }
}

const path = i => `/flat/${Math.floor(i / FAN / FAN)}/${Math.floor(i / FAN) % FAN}/node${i % FAN}`;

async function inBatches(client, count, make) {
  for (let at = 0; at < count; at += 64) {
    await client.send(Array.from({ length: Math.min(64, count - at) }, (_, i) => make(at + i)));
  }
}

/** What the floor does too: see floor.mjs. */
const FLOOR = ['READ', 'WRITE', 'READ of any node'];

/**
 * Fills a server and measures the processor time of each kind of operation.
 * @param name 'pvnet', or 'floor' for a Map by path behind Node's sockets
 */
async function measure(name, size, cpu, scale) {
  const server = await start(name, cpu, name === 'floor' ? ['map'] : []);
  const client = new Client(server.socket);
  await inBatches(client, size.nodes, i => message(XS.WRITE, `${path(i)}\0value${i}`));
  const watcher = new Client(server.socket);
  await inBatches(watcher, size.watches, i => message(XS.WATCH, `/watched/${i}\0token${i}\0`));
  const others = Array.from({ length: size.connections }, () => new Client(server.socket));
  for (const other of others) await other.send([message(XS.READ, '/flat\0')]);
  // The same number of nodes and directories is used in both stores, spread over all there is.
  const used = i => path(((i * 7919) % SMALL.nodes) * Math.floor(size.nodes / SMALL.nodes));
  const directory = i => {
    const many = size.nodes / FAN;
    const few = SMALL.nodes / FAN;
    return path((i % few) * Math.floor(many / few) * FAN).replace(/\/node\d+$/, '');
  };
  const anywhere = i => path((i * 7919) % size.nodes);
  const n = Math.round(100_000 * scale);
  const kinds = {
    READ: [n * 2, i => message(XS.READ, `${used(i)}\0`)],
    WRITE: [n, i => message(XS.WRITE, `${used(i)}\0other${i}`)],
    'DIRECTORY of 100': [n, i => message(XS.DIRECTORY, `${directory(i)}\0`)],
    'WRITE to its watch': [n, i => message(XS.WRITE, `/watched/${i % size.watches}/v\0x`)],
    'READ of any node': [n * 2, i => message(XS.READ, `${anywhere(i)}\0`)],
  };
  const costs = {};
  const timed = async (what, count, work) => {
    // Small stores need it: a large one has been through as much when it was filled.
    await work(Math.ceil(count / 2));
    const before = cpuSeconds(server.pid);
    await work(count);
    costs[what] = ((cpuSeconds(server.pid) - before) * 1e6) / count;
  };
  for (const [what, [count, make]] of Object.entries(kinds)) {
    if (name === 'floor' && !FLOOR.includes(what)) continue;
    await timed(what, Math.ceil(count), c => inBatches(client, c, make));
  }
  if (name !== 'floor') {
    // A transaction that reads one node and writes another, its three requests in one go.
    let id = 0;
    await timed('transaction', Math.ceil(n / 5), async count => {
      for (let i = 0; i < count; i++) {
        id++;
        await client.send([
          message(XS.TRANSACTION_START, '\0'),
          message(XS.READ, `${used(i)}\0`, id),
          message(XS.WRITE, `${used(i + 1)}\0txn`, id),
          message(XS.TRANSACTION_END, 'T\0', id),
        ]);
      }
    });
    await timed('one READ by each client', Math.ceil(n / 2), async count => {
      for (let done = 0; done < count; done += others.length) {
        await Promise.all(others.map((other, i) => other.send([message(XS.READ, `${used(done + i)}\0`)])));
      }
    });
  }
  for (const other of [client, watcher, ...others]) other.close();
  stop(server);
  return costs;
}

/**
 * @returns for each kind of operation the cost in a small and in a large store, in µs of the server's
 * processor, and what the floor needs for it
 */
export async function flat(cpu, rounds, scale) {
  const all = { pvnet: [], floor: [] };
  for (let round = 0; round < Math.min(rounds, 3); round++) {
    for (const name of ['pvnet', 'floor']) {
      const small = await measure(name, SMALL, cpu, scale);
      const large = await measure(name, LARGE, cpu, scale);
      all[name].push({ small, large });
    }
  }
  const costOf = (name, what) => {
    const small = median(all[name].map(found => found.small[what]));
    const large = median(all[name].map(found => found.large[what]));
    return { small, large, ratio: large / small };
  };
  return Object.keys(all.pvnet[0].small).map(what => ({
    what,
    ...costOf('pvnet', what),
    floor: FLOOR.includes(what) ? costOf('floor', what) : null,
  }));
}

async function latency(client, ms) {
  const times = [];
  const read = [message(XS.READ, '/flat/0\0')];
  const end = performance.now() + ms;
  while (performance.now() < end) {
    const before = performance.now();
    await client.send(read);
    times.push((performance.now() - before) * 1000);
    await new Promise(resolve => setTimeout(resolve, 1));
  }
  return median(times);
}

/** @returns the latency of one client alone, and beside another that does the worst it can */
export async function abuse(_cpu, rounds, scale) {
  const kinds = {
    READs: Array.from({ length: 64 }, () => message(XS.READ, '/flat/0\0')),
    WRITEs: Array.from({ length: 64 }, (_, i) => message(XS.WRITE, `/flat/x${i}\0v`)),
    'DIRECTORYs of 400': Array.from({ length: 64 }, () => message(XS.DIRECTORY, '/flat\0')),
  };
  const found = [];
  for (const [what, messages] of Object.entries(kinds)) {
    const alone = [];
    const beside = [];
    for (let round = 0; round < rounds; round++) {
      // Abuser and victim are threads of their own, so that only the server is shared.
      const server = await start('pvnet', 0);
      const victim = new Client(server.socket);
      for (let i = 0; i < 400; i++) await victim.send([message(XS.WRITE, `/flat/${i}\0v`)]);
      alone.push(await latency(victim, 300 * scale));
      const workerData = { socket: server.socket, messages: messages.map(bytes => bytes.toString('latin1')) };
      const abuser = new Worker(new URL(import.meta.url), { workerData });
      await new Promise(resolve => abuser.once('online', resolve));
      beside.push(await latency(victim, 300 * scale));
      await abuser.terminate();
      victim.close();
      stop(server);
    }
    found.push({ what, alone: median(alone), beside: median(beside), ratio: median(beside) / median(alone) });
  }
  return found;
}

if (!isMainThread) {
  const client = new Client(workerData.socket);
  const messages = workerData.messages.map(text => Buffer.from(text, 'latin1'));
  for (;;) await client.send(messages);
}
