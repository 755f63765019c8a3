import type { Domains } from './domains.js';

/** Access bits. */
export const PERM_NONE = 0;
export const PERM_READ = 1;
export const PERM_WRITE = 2;
/** Only the owner and the control domain have it. */
export const PERM_OWNER = 4;

const letters = ['n', 'r', 'w', 'b'];

/** One entry of a node's permissions. */
export interface Permission {
  readonly domid: number;
  /** PERM_READ and PERM_WRITE bits. */
  readonly access: number;
  /**
   * Which domain of that number was meant: `Domain.incarnation` when the entry was made. A later domain
   * with the same number does not inherit it (XSA-322, XSA-417). 0 when there was none: never matches.
   */
  readonly incarnation: number;
}

/**
 * Who may do what with a node. The first entry names the owner, and its letter is what everybody gets
 * who is not named. Immutable: nodes share it with the children that inherit it.
 */
export type Permissions = readonly [Permission, ...Permission[]];

/** Who asks. */
export interface Requester {
  readonly domid: number;
  /** The control domain and socket clients: nothing is refused, no quota applies. */
  readonly privileged: boolean;
  /** The domain it acts for (SET_TARGET), with all that one's rights. */
  readonly target: { readonly domid: number } | null;
}

/** What `who` may do. */
export function accessOf(permissions: Permissions, who: Requester, domains: Domains): number {
  if (who.privileged) return PERM_READ | PERM_WRITE | PERM_OWNER;
  const { domid } = who;
  const target = who.target === null ? domid : who.target.domid;
  const owner = permissions[0];
  if (owner.domid === domid || owner.domid === target) return PERM_READ | PERM_WRITE | PERM_OWNER;
  for (let i = 1; i < permissions.length; i++) {
    const entry = permissions[i];
    if ((entry.domid === domid || entry.domid === target) && domains.isSame(entry.domid, entry.incarnation)) {
      return entry.access;
    }
  }
  return owner.access;
}

/** "r5" for read access of domain 5. */
export function formatPermission(permission: Permission): string {
  return letters[permission.access] + permission.domid;
}

/** The domid and access bits of "r5"; null for what is no permission. */
export function parsePermission(text: string): { domid: number; access: number } | null {
  if (!/^[nrwb][0-9]{1,5}$/.test(text)) return null;
  const domid = Number(text.slice(1));
  return domid > 0xffff ? null : { domid, access: letters.indexOf(text[0]) };
}
