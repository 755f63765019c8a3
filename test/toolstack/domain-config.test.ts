import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { parseDomain } from '../../src/toolstack/domain-config.js';
import { parseRate, parseVif, randomMac } from '../../src/toolstack/vif-config.js';

const EXAMPLE = `# a guest
name = "guest1"   # its name
memory = 32; vcpus = 1
guest = 'netns'
vif = [ 'mac=00:16:3E:01:02:03, bridge=br1, ip=10.0.0.1/16 fd00::1, rate=10Mb/s@20ms',
        "vifname=up0,mtu=9000,script=vif-nat,backend=net,trusted=0",  # the second
        '' ,
      ]
`;

describe('a domain file', () => {
  test('is what xl reads', () => {
    const domain = parseDomain(EXAMPLE, 'guest1.cfg');
    assert.equal(domain.name, 'guest1');
    assert.equal(domain.memory, 32);
    assert.deepEqual(domain.guest, { kind: 'netns', argument: '' });
    assert.deepEqual(domain.ignored, ['guest1.cfg:3: vcpus: pvnet has no use for it']);
    const [first, second, third] = domain.vifs;
    assert.equal(first.mac, '00:16:3e:01:02:03');
    assert.equal(first.bridge, 'br1');
    assert.deepEqual(first.ip, [
      { address: '10.0.0.1', prefix: 16, version: 4 },
      { address: 'fd00::1', prefix: 64, version: 6 },
    ]);
    assert.deepEqual(first.rate, { bytes: 25_000, usecs: 20_000 });
    assert.equal(first.trusted, true);
    assert.deepEqual(
      [second.vifname, second.mtu, second.script, second.backend, second.trusted, second.mac],
      ['up0', 9000, '/etc/xen/scripts/vif-nat', 'net', false, undefined],
    );
    assert.deepEqual(
      [third.bridge, third.mtu, third.script, third.backend, third.ip, third.rate],
      ['xenbr0', 1500, '/etc/xen/scripts/vif-bridge', '0', [], undefined],
    );
  });

  test('says what its netfront does', () => {
    const of = (netfront: string) => parseDomain(`name = "a"\n${netfront}`, 'a.cfg');
    const all =
      'max_queues=4, without=sg gso-tcpv4,static_grants,multicast_control=1,gso_prefix=0,trusted=0,';
    const { netfront, ignored } = of(`netfront = "${all}"`);
    assert.deepEqual(netfront, {
      maxQueues: 4,
      without: ['sg', 'gso-tcpv4'],
      staticGrants: true,
      multicastControl: true,
      gsoPrefix: false,
      trusted: false,
    });
    assert.deepEqual(ignored, []);
    assert.equal(of('').netfront, undefined);
  });

  test('finds a module beside itself', () => {
    const { guest } = parseDomain('name="m"\nguest="module:./counter.js"', '/etc/pvnet/m.cfg');
    assert.deepEqual(guest, { kind: 'module', argument: '/etc/pvnet/counter.js' });
  });

  test('says what a Linux guest boots', () => {
    const text = `name = "l"
guest = "linux"
kernel = "vmlinuz"
initrd = "/boot/initrd"
extra = "quiet"
vcpus = 1
driver_domain = 1
`;
    const { linux, memory, ignored } = parseDomain(text, '/cfg/l.cfg');
    assert.equal(linux?.kernel, '/cfg/vmlinuz');
    assert.equal(linux?.ramdisk, '/boot/initrd');
    assert.equal(linux?.extra, 'quiet');
    assert.equal(linux?.driverDomain, true);
    assert.equal(memory, 128);
    assert.deepEqual(ignored, []);
    const wrong = { 'vcpus = 2': /has one/, 'vcpus = 0': /has one/, 'driver_domain = 2': /0 or 1/ };
    for (const [setting, message] of Object.entries(wrong)) {
      assert.throws(() => parseDomain(`name = "l"\nguest = "linux"\n${setting}\n`, 'l.cfg'), message);
    }
  });

  test('takes every escape of a string', () => {
    const { settings } = parseDomain(`name="a"\nextra="\\x41\\102\\n\\\\\\"'"`, 'a.cfg');
    assert.equal((settings.get('extra') as { text: string }).text, 'AB\n\\"\'');
  });

  const wrong: [string, RegExp][] = [
    ['memory = 64', /^ToolstackError: EINVAL: f\.cfg: name: it is missing, as in name = "guest1"/],
    ['name = guest1', /f\.cfg:1: name: there is "g" where a value should be/],
    ['name = "a', /f\.cfg:1: name: the string is not closed by "/],
    ['name "a"', /f\.cfg:1: name: there is "\\"" behind "name", where "=" should be/],
    ['name = "a" memory = 1', /f\.cfg:1: name: there is "m" behind the value, where the line should end/],
    ['name = "a"\n\n= 4', /f\.cfg:3: there is "=" where a key should be/],
    ["name = 'a'\nvif = [ 'bridge=b'\n", /f\.cfg:3: vif: the list that starts in line 2 is not closed/],
    ["name = 'a'\nvif = [ 'bridge=b' 'x' ]\n", /f\.cfg:2: vif: there is "'" in the list, where "," or "]"/],
    ["name = 'a'\nvif = 'bridge=b'", /f\.cfg:2: vif: it is a list/],
    ["name = 'a'\nvifs = []", /f\.cfg:2: vifs: there is no such key/],
    ["name = 'a'\nvif = [\n  'bridge=b',\n  'mac=1' ]", /f\.cfg:4: vif\[1\]: mac: "1" is no MAC address/],
    [
      "name = 'a'\nvif = [ 'brigde=b' ]",
      /f\.cfg:2: vif\[0\]: "brigde": no vif has that; there are mac, bridge/,
    ],
    ["name = 'a'\nvif = [ 'devid=1', '' ]", /f\.cfg:2: vif\[1\]: another vif has the devid 1/],
    ["name = 'a'\nvif = [ 7 ]", /f\.cfg:2: vif\[0\]: each vif is a string/],
    ["name = 'a'\nguest = 'vm'", /f\.cfg:2: guest: "vm" is no kind of guest; there are "echo", "netns"/],
    ["name = 'a'\nguest = 'constructor:x'", /f\.cfg:2: guest: "constructor:x" is no kind of guest/],
    ["name = 'a'\nmemory = 99999999", /f\.cfg:2: memory: it is a number of MiB up to 16777216,/],
    ["name = 'a'\nmemory = 4096\nguest = 'linux'", /f\.cfg:2: memory: it is a number of MiB up to 2047,/],
    ["name = 'a'\nguest = 'module'", /f\.cfg:2: guest: it needs a file/],
    ["name = 'a'\nguest = 'echo:1'", /f\.cfg:2: guest: "echo" takes nothing behind a colon/],
    ["name = 'a'\nmemory = 'b'", /f\.cfg:2: memory: it is a number of MiB/],
    ["name = 'a'\nnetfront = 4", /f\.cfg:2: netfront: it is a string/],
    [
      "name = 'a'\nnetfront = 'queues=4'",
      /f\.cfg:2: netfront: "queues": no netfront has that; there are max_queues/,
    ],
    ["name = 'a'\nnetfront = 'max_queues=9'", /netfront: max_queues: "9" is no number from 1 to 8/],
    ["name = 'a'\nnetfront = 'max_queues'", /netfront: max_queues: "" is no number from 1 to 8/],
    ["name = 'a'\nnetfront = 'trusted=no'", /netfront: trusted: "no" is neither 0 nor 1/],
    ["name = 'a'\nnetfront = 'trusted,trusted=1'", /netfront: trusted: it is given twice/],
    ["name = 'a'\nnetfront = 'without=sg tso'", /without: "tso" is no feature .*; there are sg, gso-tcpv4/],
    [
      "name = 'a'\nguest = 'linux'\nnetfront = ''",
      /f\.cfg:3: netfront: a guest of kind "linux" has Linux's own/,
    ],
    [
      "name = 'a'\nguest = 'netns'\nnetfront = 'multicast_control'",
      /f\.cfg:3: netfront: multicast_control: a namespace/,
    ],
    ["name = '7'", /f\.cfg:1: name: "7" is no name/],
    ["name = 'a'\nmemory = 12ab", /f\.cfg:2: memory: there is "a" where a value should be/],
  ];
  for (const [text, message] of wrong) {
    test(`says what is wrong with ${JSON.stringify(text)}`, () => {
      assert.throws(() => parseDomain(text, 'f.cfg'), message);
    });
  }

  test('never fails in another way, whatever the text', () => {
    const token = fc.constantFrom(
      'name',
      '=',
      '"a"',
      "'",
      '"',
      '[',
      ']',
      ',',
      '\n',
      '#',
      ' ',
      '1',
      'vif',
      '\\',
      ';',
    );
    fc.assert(
      fc.property(fc.array(fc.oneof(token, fc.string({ maxLength: 3 })), { maxLength: 20 }), parts => {
        try {
          parseDomain(parts.join(''), 'f.cfg');
        } catch (error) {
          assert.equal((error as Error).name, 'ToolstackError', String((error as Error).stack));
        }
      }),
    );
  });
});

describe('a vif', () => {
  const wrong: [string, RegExp][] = [
    ['mac=01:00:5e:00:00:01', /mac: 01:00:5e:00:00:01 is a group address/],
    ['mac=00:00:00:00:00:00', /mac: a device cannot have the address of all zeros/],
    ['mtu=20', /mtu: "20" is no number from 68 to 65535/],
    ['ip=10.0.0.300', /ip: "10.0.0.300" is no IP address/],
    ['ip=10.0.0.1/33', /ip: "10.0.0.1\/33": the length of the prefix is 0 to 32/],
    ['ip=10.0.0.1/', /ip: "10.0.0.1\/": the length of the prefix/],
    ['bridge', /bridge: it needs a value/],
    ['bridge=a,bridge=b', /bridge: it is given twice/],
    ['antispoof=0,antispoof', /antispoof: it is given twice/],
    ['trusted=1,untrusted', /trusted: it is given twice/],
    ['untrusted=1', /untrusted: it stands without a value, or say trusted=0/],
    ['vifname=a_name_of_20_letters', /vifname: .* it has 20 characters and may have 15/],
    ['vifname=..', /vifname: "\.\." is no interface name: it is a directory entry/],
    ['bridge=br€', /bridge: "br€" is no interface name: .* not one byte/],
    ['type=tap', /type: "tap" is none of vif and ioemu/],
    ['rate=10', /rate: "10" is no rate, as 10Mb\/s/],
  ];
  for (const [text, message] of wrong) {
    test(`cannot have ${text}`, () => {
      assert.throws(() => parseVif(text), message);
    });
  }

  test('is untrusted when it says so', () => {
    assert.equal(parseVif('untrusted').trusted, false);
    assert.equal(parseVif('trusted').trusted, true);
    assert.equal(parseVif('antispoof').antispoof, true);
    assert.equal(parseVif('mac=00:16:3e:00:00:01').antispoof, false);
    assert.throws(() => parseVif('antispoof=yes'), /antispoof: "yes" is neither 0 nor 1/);
  });
});

describe('a rate', () => {
  const rates: [string, number, number][] = [
    ['10Mb/s', 62_500, 50_000],
    ['250KB/s', 12_500, 50_000],
    ['1MB/s@20ms', 20_000, 20_000],
    ['1GB/s', 50_000_000, 50_000],
    ['8b/s@1s', 1, 1_000_000],
    ['100B/s@1s', 100, 1_000_000],
    ['1MB/s@500us', 500, 500],
  ];
  for (const [text, bytes, usecs] of rates) {
    test(`${text} is ${bytes} bytes in ${usecs} µs`, () => {
      assert.deepEqual(parseRate(text), { bytes, usecs });
    });
  }
  for (const text of [
    '',
    '10',
    '10Mb',
    '10mb/s',
    '-1b/s',
    '10Mb/s@',
    '10Mb/s@0s',
    '1b/s',
    '9999999999GB/s',
  ]) {
    test(`cannot be ${JSON.stringify(text)}`, () => {
      assert.throws(() => parseRate(text));
    });
  }
});

test('a MAC address that is made up is in the lower half of Xen’s range', () => {
  fc.assert(
    fc.property(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), chance => {
      assert.match(
        randomMac(() => chance),
        /^00:16:3e:[0-7][0-9a-f]:[0-9a-f]{2}:[0-9a-f]{2}$/,
      );
    }),
  );
});
