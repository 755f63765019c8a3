import { GNTTAB_RESERVED_CONSOLE } from '../../abi/grant-table.js';
import type { Irqs } from '../../events/index.js';
import type { GrantMapping, Platform } from '../../platform/index.js';
import type { Domain } from '../../platform/sim/index.js';

/** Byte offsets of struct xencons_interface (xen/include/public/io/console.h). */
const IN_SIZE = 1024;
const OUT_SIZE = 2048;
const OUT = 1024;
const IN_CONS = 3072;
const IN_PROD = 3076;
const OUT_CONS = 3080;
const OUT_PROD = 3084;

/** Bytes typed that the guest has not taken yet; more are dropped. */
const MAX_TYPED = 64 << 10;

/** Domain 0's end of a domain's console ring, as xenconsoled is. */
export class PvConsole {
  private readonly mapping: GrantMapping;
  private readonly irq: number;
  private readonly port: number;
  private typed: number[] = [];
  private closed = false;

  /**
   * @param dom0 platform and interrupts of domain 0's kernel
   * @param onOutput gets what the guest writes; the array is its own
   */
  constructor(
    private readonly dom0: { platform: Platform; irqs: Irqs },
    domain: Domain,
    private readonly onOutput: (bytes: Uint8Array) => void,
  ) {
    const { platform, irqs } = dom0;
    this.mapping = platform.grants.map(domain.domid, GNTTAB_RESERVED_CONSOLE, false);
    const { irq, port } = irqs.bindInterdomainEvtchnToIrqhandler(
      domain.domid,
      domain.consolePort,
      () => this.poll(),
      `console d${domain.domid}`,
    );
    this.irq = irq;
    this.port = port;
  }

  /** Types `bytes` into the guest. */
  write(bytes: Uint8Array): void {
    for (const byte of bytes) if (this.typed.length < MAX_TYPED) this.typed.push(byte);
    this.poll();
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.dom0.irqs.unbindFromIrqhandler(this.irq);
    this.dom0.platform.grants.unmap(this.mapping);
  }

  private poll(): void {
    if (this.closed) return;
    const took = this.takeOutput();
    const gave = this.giveInput();
    if (took || gave) this.dom0.platform.events.notify(this.port);
  }

  private takeOutput(): boolean {
    const { memory, address } = this.mapping;
    const prod = memory.load(address + OUT_PROD);
    const cons = memory.load(address + OUT_CONS);
    // A guest that claims more than the ring holds has written over what it says is there.
    const count = Math.min((prod - cons) >>> 0, OUT_SIZE);
    if (count === 0) return false;
    const bytes = new Uint8Array(count);
    const first = (prod - count) >>> 0;
    for (let i = 0; i < count; i++) bytes[i] = memory.u8[address + OUT + ((first + i) & (OUT_SIZE - 1))];
    memory.store(address + OUT_CONS, prod);
    this.onOutput(bytes);
    return true;
  }

  private giveInput(): boolean {
    if (this.typed.length === 0) return false;
    const { memory, address } = this.mapping;
    const prod = memory.load(address + IN_PROD);
    const used = (prod - memory.load(address + IN_CONS)) >>> 0;
    const count = Math.min(this.typed.length, used > IN_SIZE ? 0 : IN_SIZE - used);
    if (count === 0) return false;
    for (let i = 0; i < count; i++) memory.u8[address + ((prod + i) & (IN_SIZE - 1))] = this.typed[i];
    this.typed = this.typed.slice(count);
    memory.store(address + IN_PROD, prod + count);
    return true;
  }
}
