import fc from 'fast-check';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  hashExtraWord0,
  XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
} from '../../src/abi/index.js';

export type Of<T> = T extends fc.Arbitrary<infer U> ? U : never;

/** A value once in so many times. */
export function rarely<T>(times: number, arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> {
  return fc.oneof({ weight: times - 1, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary });
}

/** Numbers that something may go wrong at. */
const edge16 = fc.constantFrom(0, 1, 13, 14, 191, 192, 193, 480, 481, 1514, 4082, 4095, 4096, 4097, 0xffff);
export const u16 = fc.oneof(edge16, fc.nat(0xffff));
export const u32 = fc.oneof(
  fc.constantFrom(0, 1, 255, 256, 0xffff, 0x7fffffff, 0xffffffff),
  fc.nat(0xffffffff),
);

/** Changes a word of a slot. */
export const wordChange = fc.oneof(
  fc.nat(31).map(bit => (old: number) => old ^ (1 << bit)),
  u16.map(low => (old: number) => (old & 0xffff0000) | low),
  u16.map(high => (old: number) => (old & 0xffff) | (high << 16)),
  u32.map(value => () => value),
);

/** The two words of an extra info. */
export const extra = fc.oneof(
  { weight: 40, arbitrary: fc.constantFrom(1, 2).map(type => [gsoExtraWord0(1448), gsoExtraWord1(type)]) },
  { weight: 5, arbitrary: u16.map(size => [gsoExtraWord0(Math.max(size, 1)), gsoExtraWord1(1)]) },
  { weight: 3, arbitrary: u32.map(hash => [hashExtraWord0(1, 1), hash]) },
  { weight: 3, arbitrary: u32.map(group => [XEN_NETIF_EXTRA_TYPE_MCAST_ADD | 0x10000, group]) },
  { weight: 1, arbitrary: fc.tuple(fc.nat(0xffff), u32).map(([low, high]) => [low & ~0x100, high]) },
);

/** For `buildFrame`. */
export const frameOptions = fc.record({
  version: fc.constantFrom(4 as const, 4 as const, 6 as const),
  udp: fc.boolean(),
  vlan: rarely(8, fc.nat(4095)),
  flags: fc.constantFrom(0x10, 0x18, 0x02),
  tcpOptions: fc.constantFrom(0, 12, 40),
  sourcePort: fc.nat(3),
});

/** Bytes of a packet's slots; of the first, which has the headers, behind them. */
export const slotSizes = fc.oneof(
  { weight: 4, arbitrary: fc.tuple(fc.nat(3900)) },
  { weight: 2, arbitrary: fc.tuple(fc.nat(40)) },
  { weight: 3, arbitrary: fc.tuple(fc.integer({ min: 130, max: 3900 }), fc.integer({ min: 1, max: 4096 })) },
  {
    weight: 2,
    arbitrary: fc.tuple(fc.integer({ min: 130, max: 3000 }), fc.integer({ min: 1, max: 4096 }), fc.nat(4096)),
  },
  { weight: 1, arbitrary: fc.array(fc.nat(400), { minLength: 1, maxLength: 20 }) },
  {
    weight: 1,
    arbitrary: fc.array(fc.constant(4096), { minLength: 1, maxLength: 17 }).map(all => [140, ...all]),
  },
);
