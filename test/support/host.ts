import { XenbusState } from '../../src/abi/index.js';
import { Bridge, type NetDevice } from '../../src/net/index.js';
import { type NetbackOptions, registerNetback } from '../../src/netback/index.js';
import { type NetfrontOptions, registerNetfront } from '../../src/netfront/index.js';
import { formatXenbusTrace, type XenbusTraceEvent } from '../../src/xenbus/index.js';
import type { XenStoreClient } from '../../src/xenstore/index.js';
import { type PlugOptions, SimHost, type SimHostOptions, type SimKernel } from './sim-host.js';

/** A domain of the test host with its kernel. */
export type GuestDomain = SimKernel;

export interface HostOptions extends SimHostOptions {
  netback?: NetbackOptions;
}

/** Nodes of a vif's two directories beyond those that it always has. */
export interface VifKeys {
  front?: PlugOptions['frontNodes'];
  back?: PlugOptions['backNodes'];
}

/** A `SimHost` with the network drivers: domain 0 has netback and a bridge, guests have netfront. */
export class Host extends SimHost {
  /** What every xenbus did, a line each. */
  readonly trace: string[] = [];
  bridge!: Bridge;

  static override async boot(seed = 1, options: HostOptions = {}): Promise<Host> {
    const host = new Host(seed, options);
    await host.start();
    const { dom0 } = host;
    host.bridge = new Bridge(dom0.net, 'xenbr0');
    dom0.net.register(host.bridge as NetDevice);
    host.bridge.open();
    await host.run(registerNetback(dom0.kernel, options.netback));
    return host;
  }

  protected override seen(event: XenbusTraceEvent): void {
    this.trace.push(formatXenbusTrace(event));
  }

  /** The toolstack's connection. */
  get xs(): XenStoreClient {
    return this.toolstack;
  }

  /** A domain whose kernel is up; with null without netfront. */
  async createGuest(name: string, netfront: NetfrontOptions | null = {}): Promise<GuestDomain> {
    const guest = await this.bootDomain({ name });
    if (netfront !== null) await this.run(registerNetfront(guest.kernel, netfront));
    return guest;
  }

  private vif(guest: GuestDomain, devid: number, keys: VifKeys = {}): PlugOptions {
    const mac = `00:16:3e:00:${[guest.domid, devid].map(n => n.toString(16).padStart(2, '0')).join(':')}`;
    const script = { bridge: 'xenbr0', script: '/etc/xen/scripts/vif-bridge', 'hotplug-status': '' };
    return {
      type: 'vif',
      front: guest,
      back: this.dom0,
      devid,
      frontNodes: { mac, ...keys.front },
      backNodes: { mac, ...script, ...keys.back },
    };
  }

  /** What libxl writes for a vif, in one transaction. */
  addVif(guest: GuestDomain, devid = 0, keys?: VifKeys): Promise<void> {
    return this.plug(this.vif(guest, devid, keys));
  }

  /** What the hotplug script does: the vif joins the bridge, and the backend hears of it. */
  async hotplug(guest: GuestDomain, devid = 0): Promise<void> {
    const name = `vif${guest.domain.domid}.${devid}`;
    await this.until(() => this.dom0.net.byName(name) !== undefined);
    const vif = this.dom0.net.byName(name)!;
    this.bridge.addPort(vif);
    vif.open();
    await this.run(this.xs.write(`${this.backPath(guest, devid)}/hotplug-status`, 'connected'));
  }

  /** A vif that is connected at both ends. @returns the guest's device */
  async connectVif(guest: GuestDomain, devid = 0, keys?: VifKeys) {
    await this.addVif(guest, devid, keys);
    await this.hotplug(guest, devid);
    await this.until(() => this.states(guest, devid).every(state => state === XenbusState.Connected));
    const { net } = guest.kernel;
    return [...net.devices].at(-1)!;
  }

  /** Writes what a frontend publishes, with some keys changed, and goes to Connected; for a guest without netfront. */
  async publishFrontend(guest: GuestDomain, changed: Readonly<Record<string, string>>): Promise<void> {
    const { platform } = guest.domain;
    const ring = () => String(platform.grants.grantAccess(0, platform.memory.allocPage(), false));
    const port = () => String(platform.events.allocUnbound(0));
    const keys = {
      'tx-ring-ref': ring(),
      'rx-ring-ref': ring(),
      'event-channel-tx': port(),
      'event-channel-rx': port(),
      'request-rx-copy': '1',
      'feature-rx-notify': '1',
      ...changed,
      state: String(XenbusState.Connected),
    };
    await this.run(
      this.xs.transaction(async t => {
        for (const [key, value] of Object.entries(keys)) {
          if (value !== '') await t.write(`${this.frontPath(guest)}/${key}`, value);
        }
      }),
    );
  }

  backPath(guest: GuestDomain, devid = 0): string {
    return this.backDir(this.vif(guest, devid));
  }

  frontPath(guest: GuestDomain, devid = 0): string {
    return this.frontDir(this.vif(guest, devid));
  }

  /** Both ends' states as the buses have them: [frontend, backend]; -1 for none. */
  states(guest: GuestDomain, devid = 0): [front: number, back: number] {
    const front = guest.kernel.xenbus.frontend.devices.get(`device/vif/${devid}`);
    const back = this.dom0.xenbus.backend.devices.get(`backend/vif/${guest.domain.domid}/${devid}`);
    return [front?.state ?? -1, back?.state ?? -1];
  }

  /** What libxl does to take a vif away; the directories go when the backend is closed. */
  async detachVif(guest: GuestDomain, devid = 0): Promise<void> {
    await this.unplug(this.vif(guest, devid));
    await this.until(() => this.states(guest, devid).every(state => state === -1));
  }

  /** What every domain holds of Xen's resources; the same before and after, or something leaked. */
  allHoldings(): object {
    return Object.fromEntries(
      this.hypervisor.domains.map(({ domid, platform }) => [
        domid,
        {
          grants: platform.grants.allocated,
          mapped: platform.grants.mapped,
          ports: platform.events.allocated,
          pages: platform.memory.allocated,
        },
      ]),
    );
  }
}
