import { XS } from '../abi/xs-wire.js';
import type { XenStoreClient } from './client.js';
import { XenStoreError } from './error.js';
import { NodeOperations, payload, type RequestOptions } from './operations.js';

/** A transaction as the client has it: reads see the store as it was at the start, plus its own changes. */
export class ClientTransaction extends NodeOperations {
  /** Neither committed nor aborted. */
  isOpen = true;

  /** @param ended is called once, when it no longer counts as open */
  constructor(
    readonly client: XenStoreClient,
    readonly id: number,
    readonly ended: () => void,
  ) {
    super();
  }

  override request(type: number, body: Uint8Array, options?: RequestOptions): Promise<Uint8Array> {
    if (!this.isOpen) return Promise.reject(new XenStoreError('EINVAL', `transaction ${this.id} has ended`));
    return this.client.request(type, body, this.id, options);
  }

  /** Makes all changes at once. @throws XenStoreError EAGAIN when others changed what it depends on */
  commit(): Promise<void> {
    return this.#end('T');
  }

  /** Gives all changes up. Does nothing when the transaction has ended. */
  async abort(): Promise<void> {
    if (this.isOpen) await this.#end('F');
  }

  async #end(how: 'T' | 'F'): Promise<void> {
    const reply = this.request(XS.TRANSACTION_END, payload(how));
    this.isOpen = false;
    try {
      await reply;
    } finally {
      this.ended();
    }
  }
}
