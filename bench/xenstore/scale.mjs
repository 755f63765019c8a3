// How the cost of an operation grows with the store, and what one client's abuse costs another.
import { connect } from 'node:net';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { cpuSeconds, median, residentMb, start, stop } from './servers.mjs';

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
/** How often each kind of operation is measured; the median counts. */
const SLICES = 10;

/** A filled server. */
class Filled {
  /** @param name 'pvnet', or 'floor' for a Map by path behind Node's sockets */
  static async start(name, size, cpu) {
    const server = await start(name, cpu, name === 'floor' ? ['map'] : []);
    const client = new Client(server.socket);
    await inBatches(client, size.nodes, i => message(XS.WRITE, `${path(i)}\0value${i}`));
    const watcher = new Client(server.socket);
    await inBatches(watcher, size.watches, i => message(XS.WATCH, `/watched/${i}\0token${i}\0`));
    const others = Array.from({ length: size.connections }, () => new Client(server.socket));
    for (const other of others) await other.send([message(XS.READ, '/flat\0')]);
    return new Filled(name, size, server, client, watcher, others);
  }

  constructor(name, size, server, client, watcher, others) {
    Object.assign(this, { name, size, server, client, watcher, others });
    this.done = 0;
    this.transactions = 0;
  }

  /** The same number of nodes is used in every store, spread over all there is. */
  used(i) {
    return path(((i * 7919) % SMALL.nodes) * Math.floor(this.size.nodes / SMALL.nodes));
  }

  directory(i) {
    const few = SMALL.nodes / FAN;
    const step = Math.floor(this.size.nodes / FAN / few);
    return path((i % few) * step * FAN).replace(/\/node\d+$/, '');
  }

  anywhere(i) {
    return path((i * 7919) % this.size.nodes);
  }

  stop() {
    for (const client of [this.client, this.watcher, ...this.others]) client.close();
    stop(this.server);
  }
}

/** A kind of operation whose requests are sent 64 at a time. */
const pipelined = (share, make) => ({
  share,
  run: (store, from, count) => inBatches(store.client, count, i => make(store, from + i)),
});

const KINDS = {
  READ: pipelined(2, (store, i) => message(XS.READ, `${store.used(i)}\0`)),
  WRITE: pipelined(1, (store, i) => message(XS.WRITE, `${store.used(i)}\0other${i}`)),
  'DIRECTORY of 100': pipelined(1, (store, i) => message(XS.DIRECTORY, `${store.directory(i)}\0`)),
  'WRITE to its watch': pipelined(1, ({ size }, i) => message(XS.WRITE, `/watched/${i % size.watches}/v\0x`)),
  'READ of any node': pipelined(2, (store, i) => message(XS.READ, `${store.anywhere(i)}\0`)),
  // Reads one node and writes another, its four requests in one go.
  transaction: {
    share: 0.2,
    async run(store, from, count) {
      for (let i = from; i < from + count; i++) {
        const id = ++store.transactions;
        await store.client.send([
          message(XS.TRANSACTION_START, '\0'),
          message(XS.READ, `${store.used(i)}\0`, id),
          message(XS.WRITE, `${store.used(i + 1)}\0txn`, id),
          message(XS.TRANSACTION_END, 'T\0', id),
        ]);
      }
    },
  },
  'one READ by each client': {
    share: 0.5,
    async run(store, from, count) {
      for (let done = 0; done < count; done += store.others.length) {
        const read = i => [message(XS.READ, `${store.used(from + done + i)}\0`)];
        await Promise.all(store.others.map((other, i) => other.send(read(i))));
      }
    },
  },
};

/** µs of the server's processor for each of the next `count` operations. */
async function slice(store, kind, count) {
  const before = cpuSeconds(store.server.pid);
  await kind.run(store, store.done, count);
  store.done += count;
  return ((cpuSeconds(store.server.pid) - before) * 1e6) / count;
}

const MEMORY = 'memory, MB';

/** @returns for each kind of operation its cost in each of the stores, which take turns, and their memory */
async function measure(stores, scale) {
  const found = { [MEMORY]: stores.map(({ server }) => residentMb(server.pid)) };
  for (const [what, kind] of Object.entries(KINDS)) {
    const asked = stores.filter(({ name }) => name === 'pvnet' || FLOOR.includes(what));
    const count = Math.ceil(10_000 * kind.share * scale);
    const costs = new Map(asked.map(store => [store, []]));
    // Small stores need a warm-up: a large one has been through as much when it was filled.
    for (const store of asked) await slice(store, kind, count * 5);
    for (let i = 0; i < SLICES; i++) {
      for (const store of asked) costs.get(store).push(await slice(store, kind, count));
    }
    found[what] = stores.map(store => median(costs.get(store) ?? []));
  }
  return found;
}

/**
 * @returns for each kind of operation the cost in a small and in a large store, in µs of the server's
 * processor, and what the floor needs for it; last, the memory that each holds
 */
export async function flat(cpu, rounds, scale) {
  const results = [];
  for (let round = 0; round < Math.min(rounds, 3); round++) {
    const stores = [];
    for (const name of ['pvnet', 'floor']) {
      for (const size of [SMALL, LARGE]) stores.push(await Filled.start(name, size, cpu));
    }
    results.push(await measure(stores, scale));
    for (const store of stores) store.stop();
  }
  const costOf = (what, at) => {
    const [small, large] = [at, at + 1].map(i => median(results.map(found => found[what][i])));
    return { small, large, ratio: large / small };
  };
  return [...Object.keys(KINDS), MEMORY].map(what => ({
    what,
    ...costOf(what, 0),
    floor: FLOOR.includes(what) || what === MEMORY ? costOf(what, 2) : null,
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
export async function abuse(cpu, rounds, scale) {
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
      const server = await start('pvnet', cpu);
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
