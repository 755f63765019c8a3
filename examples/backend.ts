import { LinuxBackend } from 'pvnet/linux';
import { FILTER_DROP, FILTER_PASS, type FilteredPacket } from 'pvnet/netback';

/**
 * A backend of our own for dom0, or a driver domain, of a real Xen host: `node backend.js BRIDGE`. The guests' vifs are ports of
 * a bridge in this process, nobody sends TCP to port 23, and every ten seconds it prints what the vifs have dropped.
 */
const [bridge = 'guests'] = process.argv.slice(2);
const [ETHERTYPE, IP_VERSION, IP_PROTOCOL, IP] = [12, 14, 23, 14];

/** Sees each packet of each vif, whichever way it goes. One that is too short to have a port makes it throw, which drops it. */
function noTelnet(packet: FilteredPacket): number {
  if (packet.u16(ETHERTYPE) !== 0x0800 || packet.u8(IP_PROTOCOL) !== 6) return FILTER_PASS;
  const tcp = IP + (packet.u8(IP_VERSION) & 0x0f) * 4;
  return packet.u16(tcp + 2) === 23 ? FILTER_DROP : FILTER_PASS;
}

function report(backend: LinuxBackend): void {
  for (const vif of backend.vifs) {
    const { rxPackets, txPackets, filterDrops } = vif.counters();
    console.log(`${vif.name}: ${rxPackets} from the guest, ${txPackets} to it, ${filterDrops} dropped`);
  }
}

try {
  const backend = await LinuxBackend.start({
    bridge,
    netback: {
      prepare(vif) {
        vif.filter = noTelnet;
      },
    },
    log: line => console.error(line),
  });
  console.log(`serving vifs on ${bridge}`);
  setInterval(report, 10_000, backend).unref();
  // SIGTERM and Ctrl-C close the vifs; SIGUSR2 leaves them, connected, to the next start.
  await backend.run();
} catch (error) {
  console.error(`backend: ${(error as Error).message}`);
  process.exit(1);
}
