import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { addressBytes, ECHO_PORT, EchoStack, linkLocalAddress } from '../../src/guests/echo-stack.js';

const MAC_A = Uint8Array.of(0, 0x16, 0x3e, 0, 0, 1);
const MAC_B = Uint8Array.of(0, 0x16, 0x3e, 0, 0, 2);

/** Two stacks on one wire; what each sends is kept. */
function wire(): { a: EchoStack; b: EchoStack; frames: Uint8Array[] } {
  const frames: Uint8Array[] = [];
  const a: EchoStack = new EchoStack(MAC_A, ['10.0.0.1', 'fd00::1'], frame => {
    frames.push(frame);
    b.receive(frame);
  });
  const b: EchoStack = new EchoStack(MAC_B, ['10.0.0.2', 'fd00::2'], frame => {
    frames.push(frame);
    a.receive(frame);
  });
  return { a, b, frames };
}

function checksum(bytes: Uint8Array, from: number, to: number, start: number): number {
  let sum = start;
  for (let i = from; i < to; i += 2) sum += bytes[i] * 256 + (i + 1 < to ? bytes[i + 1] : 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 65536);
  return sum;
}

describe('the echo stack', () => {
  for (const [kind, address] of [
    ['IPv4', '10.0.0.2'],
    ['IPv6', 'fd00::2'],
    ['link-local', 'fe80::216:3eff:fe00:2'],
  ]) {
    test(`pings and answers over ${kind}, with right checksums`, () => {
      const { a, frames } = wire();
      let answers = 0;
      for (const bytes of [0, 1, 56, 1400]) a.ping(addressBytes(address), () => answers++, bytes);
      assert.equal(answers, 4);
      for (const frame of frames) {
        const type = frame[12] * 256 + frame[13];
        if (type === 0x0800) {
          assert.equal(checksum(frame, 14, 34, 0), 0xffff);
          assert.equal(checksum(frame, 34, frame.length, 0), 0xffff);
        } else if (type === 0x86dd) {
          assert.equal(checksum(frame, 22, frame.length, 58 + frame.length - 54), 0xffff);
        }
      }
    });
  }

  test('asks for a neighbour once, then knows it', () => {
    const { a, frames } = wire();
    const arps = (): number => frames.filter(frame => frame[12] === 8 && frame[13] === 6).length;
    a.ping(addressBytes('10.0.0.2'), () => {});
    assert.equal(arps(), 2);
    a.ping(addressBytes('10.0.0.2'), () => {});
    assert.equal(arps(), 2);
  });

  test('gives up when told to', () => {
    const { a } = wire();
    const giveUp = a.ping(addressBytes('10.0.0.9'), () => assert.fail('nobody has that address'));
    giveUp();
    giveUp();
  });

  test('echoes UDP port 7, but not to another echo service', () => {
    const sent: Uint8Array[] = [];
    const stack = new EchoStack(MAC_A, ['10.0.0.1'], frame => void sent.push(frame));
    const frame = (port: number, to: number): Uint8Array => {
      const bytes = new Uint8Array(14 + 20 + 8 + 5);
      bytes.set(MAC_A, 0);
      bytes.set(MAC_B, 6);
      bytes.set([8, 0, 0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1], 12);
      const sum = ~checksum(bytes, 14, 34, 0) & 0xffff;
      bytes.set([sum >> 8, sum & 255], 24);
      bytes.set([port >> 8, port & 255, to >> 8, to & 255, 0, 13, 0, 0], 34);
      bytes.set(Buffer.from('hello'), 42);
      return bytes;
    };
    stack.receive(frame(4000, ECHO_PORT));
    assert.equal(sent.length, 1);
    assert.equal(Buffer.from(sent[0].subarray(42)).toString(), 'hello');
    assert.deepEqual([...sent[0].subarray(34, 38)], [0, 7, 4000 >> 8, 4000 & 255]);
    assert.equal(checksum(sent[0], 26, sent[0].length, 17 + 13), 0xffff);
    stack.receive(frame(ECHO_PORT, ECHO_PORT));
    stack.receive(frame(4000, 8));
    assert.equal(sent.length, 1);
  });

  test('announces every address', () => {
    const sent: Uint8Array[] = [];
    new EchoStack(MAC_A, ['10.0.0.1', 'fd00::1'], frame => void sent.push(frame)).announce();
    assert.equal(sent.length, 3);
  });

  test('never throws, whatever arrives', () => {
    const stack = new EchoStack(MAC_A, ['10.0.0.1', 'fd00::1'], () => {});
    const etherTypes = fc.constantFrom([8, 6], [8, 0], [0x86, 0xdd]);
    fc.assert(
      fc.property(etherTypes, fc.uint8Array({ maxLength: 120 }), (type, rest) => {
        const frame = new Uint8Array(14 + rest.length);
        frame.set(MAC_A, 0);
        frame.set(MAC_B, 6);
        frame.set(type, 12);
        frame.set(rest, 14);
        stack.receive(frame);
        if (rest.length > 24) {
          // Deeper: a header that is right.
          frame[14] = type[0] === 8 ? 0x45 : 0x60;
          frame.set([10, 0, 0, 1], 30);
          stack.receive(frame);
        }
        stack.receive(rest);
      }),
    );
  });
});

test('IP addresses in all their forms', () => {
  const hex = (text: string): string => Buffer.from(addressBytes(text)).toString('hex');
  assert.equal(hex('10.0.0.255'), '0a0000ff');
  assert.equal(hex('::'), '00'.repeat(16));
  assert.equal(hex('fd00::1'), `fd00${'00'.repeat(13)}01`);
  assert.equal(hex('1:2:3:4:5:6:7:8'), '00010002000300040005000600070008');
  assert.equal(hex('::ffff:10.0.0.1'), `${'00'.repeat(10)}ffff0a000001`);
  assert.equal(hex('2001:db8::'), `20010db8${'00'.repeat(12)}`);
  assert.throws(() => addressBytes('10.0.0'), RangeError);
  assert.equal(Buffer.from(linkLocalAddress(MAC_A)).toString('hex'), 'fe8000000000000002163efffe000001');
});
