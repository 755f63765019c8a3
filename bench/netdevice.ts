// What network devices cost: node dist/bench/netdevice.js
// Ratios of medians of interleaved runs; the absolute numbers are this machine's.

import {
  createBridge,
  NETIF_F_HW_CSUM,
  NETIF_F_SG,
  type NetDevice,
  PACKET_LINEAR_MAX,
  sumBytes,
} from '../src/net/index.js';
import { buildFrame } from '../test/net/frames.js';
import { TestKernel } from '../test/net/kernel.js';

const RUNS = 7;

function median(values: number[]): number {
  return values.sort((a, b) => a - b)[values.length >> 1];
}

/** Nanoseconds for one of `count` turns of `body`. */
function time(count: number, body: (count: number) => void): number {
  const start = process.hrtime.bigint();
  body(count);
  return Number(process.hrtime.bigint() - start) / count;
}

function registration(): void {
  const kernels = [0, 10_000].map(present => {
    const kernel = new TestKernel({ pages: 64 });
    for (let i = 0; i < present; i++)
      kernel.net.register(kernel.net.allocEtherdev('eth%d', { startXmit: () => 0 }));
    return kernel;
  });
  const samples: number[][] = [[], []];
  for (let run = 0; run < RUNS; run++) {
    kernels.forEach(({ net }, i) => {
      samples[i].push(
        time(3000, count => {
          for (let n = 0; n < count; n++) {
            const device = net.allocEtherdev('eth%d', { startXmit: () => 0 });
            net.register(device);
            void net.unregister(device);
          }
        }),
      );
    });
  }
  const [none, many] = samples.map(median);
  console.log(`register + unregister, no device present       ${(1e9 / none).toFixed(0)} a second`);
  console.log(`register + unregister, 10,000 devices present  ${(1e9 / many).toFixed(0)} a second`);
  console.log(`  cost with 10,000 devices                     ${(many / none).toFixed(2)} times (bound 1.5)`);
}

function checksum(): void {
  const { memory } = new TestKernel({ pages: 64 }).memory;
  for (const size of [64, 1500, 65536]) {
    let sum = 0;
    const samples = Array.from({ length: RUNS }, () =>
      time(Math.ceil(100_000_000 / (size + 100)), count => {
        for (let n = 0; n < count; n++) sum += sumBytes(memory, 4096, size);
      }),
    );
    const ns = median(samples);
    console.log(
      `checksum of ${String(size).padStart(5)} bytes  ${ns.toFixed(0).padStart(6)} ns  ${(size / ns).toFixed(2)} GB/s${sum < 0 ? '!' : ''}`,
    );
  }
}

function forwarding(): void {
  const kernel = new TestKernel({ pages: 2048 });
  const bridge = createBridge(kernel.net, 'xenbr0');
  bridge.open();
  const ports = ['vif1.0', 'vif2.0'].map(name => {
    const device: NetDevice = kernel.net.allocEtherdev(name, {
      startXmit: packet => {
        packet.release();
        return 0;
      },
    });
    device.features = NETIF_F_SG | NETIF_F_HW_CSUM;
    device.address.set([2, 0, 0, 0, 0, kernel.net.deviceCount]);
    kernel.net.register(device);
    device.open();
    bridge.addPort(device);
    return device;
  });
  const bytes = buildFrame({ payload: new Uint8Array(400) }).subarray(0, PACKET_LINEAR_MAX);
  const back = buildFrame({
    payload: new Uint8Array(4),
    source: [2, 0, 0, 0, 0, 2],
    destination: [2, 0, 0, 0, 0, 1],
  });
  ports[1].receive(kernel.packet(back));
  kernel.run();
  const { u8 } = kernel.memory.memory;
  const fill = () => {
    const packet = kernel.net.packets.get();
    u8.set(bytes.subarray(0, 64), packet.data);
    packet.linear = packet.length = bytes.length;
    return packet;
  };
  let left = 0;
  const napi = ports[0].napiAdd(budget => {
    let done = 0;
    while (done < budget && left > 0) {
      ports[0].receive(fill());
      left--;
      done++;
    }
    if (done < budget) napi.complete(done);
    return done;
  });
  napi.enable();
  const [queue] = ports[1].txQueues;
  const rounds = (bql: boolean) => (count: number) => {
    for (let n = 0; n < count; n += 64) {
      left += 64;
      napi.schedule();
      kernel.run();
      if (bql) {
        queue.sent(64 * bytes.length);
        queue.completed(64 * bytes.length);
      }
    }
  };
  const direct = (count: number): void => {
    for (let n = 0; n < count; n++) ports[1].ops.startXmit(fill(), ports[1]);
  };
  const xmit = (count: number): void => {
    for (let n = 0; n < count; n++) ports[1].xmit(fill(), true);
    kernel.net.flush();
  };
  const samples: Record<string, number[]> = { direct: [], xmit: [], napi: [], bql: [] };
  for (let run = 0; run < RUNS; run++) {
    samples.direct.push(time(256_000, direct));
    samples.xmit.push(time(256_000, xmit));
    samples.napi.push(time(256_000, rounds(false)));
    samples.bql.push(time(256_000, rounds(true)));
  }
  const at = Object.fromEntries(Object.entries(samples).map(([name, values]) => [name, median(values)]));
  console.log(`packet from the pool, into the driver          ${at.direct.toFixed(1)} ns`);
  console.log(`  + qdisc and feature checks (xmit)            ${(at.xmit - at.direct).toFixed(1)} ns`);
  console.log(`  + NAPI poll, bridge, learning                ${(at.napi - at.xmit).toFixed(1)} ns`);
  console.log(`  + byte queue limit, a batch of 64            ${(at.bql - at.napi).toFixed(1)} ns`);
}

registration();
checksum();
forwarding();
