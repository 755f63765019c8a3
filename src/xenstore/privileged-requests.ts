import { parseXsdError, XS } from '../abi/xs-wire.js';
import type { Connection } from './connection.js';
import { control } from './control.js';
import { type Domain, SUPPORTED_FEATURES } from './domains.js';
import { parseDomid } from './payload.js';
import { isQuotaName, QUOTA_NAMES } from './quota.js';
import type { XenStoreServer } from './server.js';
import type { Outcome } from './store.js';

/** Requests of the control domain only. */
export function privileged(server: XenStoreServer, connection: Connection, words: string[]): Outcome {
  switch (connection.type) {
    case XS.CONTROL: {
      const answer = control(server, words);
      if (answer.error !== undefined) return answer.error;
      connection.replyText(answer.text);
      return '';
    }
    case XS.INTRODUCE:
      return introduce(server, connection, words);
    case XS.RELEASE: {
      const domain = introducedDomain(server, words[0]);
      if (typeof domain === 'string') return domain;
      server.removeDomain(domain);
      return connection.replyOk();
    }
    case XS.RESUME: {
      const domain = introducedDomain(server, words[0]);
      if (typeof domain === 'string') return domain;
      domain.shutdown = false;
      return connection.replyOk();
    }
    case XS.SET_TARGET: {
      if (words.length < 2) return 'EINVAL';
      const from = server.connectionOf(parseDomid(words[0]));
      const to = server.connectionOf(parseDomid(words[1]));
      if (from === undefined || to === undefined) return 'ENOENT';
      from.target = { domid: to.domid };
      return connection.replyOk();
    }
    case XS.SET_FEATURE:
      return setFeature(server, connection, words);
    case XS.GET_QUOTA:
      return getQuota(server, connection, words);
    default:
      return setQuota(server, connection, words);
  }
}

function setFeature(server: XenStoreServer, connection: Connection, words: string[]): Outcome {
  if (words.length !== 2 || !/^[0-9]{1,10}$/.test(words[1])) return 'EINVAL';
  const features = Number(words[1]);
  if (features & ~SUPPORTED_FEATURES || features > 0xffffffff) return 'EINVAL';
  const domain = existingDomain(server, words[0]);
  if (typeof domain === 'string') return domain;
  if (domain.introduced) return 'EBUSY';
  domain.features = features;
  return connection.replyOk();
}

/** The value of a quota, for one domain or by default; without words the names of all. */
function getQuota(server: XenStoreServer, connection: Connection, words: string[]): Outcome {
  if (words.length === 0 || (words.length === 1 && words[0] === '')) {
    connection.replyText(`${QUOTA_NAMES.join(' ')}\0`);
    return '';
  }
  const name = words[words.length - 1];
  if (words.length > 2 || !isQuotaName(name)) return 'EINVAL';
  let value = server.store.quotas[name];
  if (words.length === 2) {
    const domain = existingDomain(server, words[0]);
    if (typeof domain === 'string') return domain;
    value = server.store.quota(domain, name);
  }
  connection.replyText(`${value}\0`);
  return '';
}

function setQuota(server: XenStoreServer, connection: Connection, words: string[]): Outcome {
  const [name, value] = words.slice(-2);
  if (words.length < 2 || words.length > 3 || !isQuotaName(name) || !/^[0-9]{1,9}$/.test(value)) {
    return 'EINVAL';
  }
  if (words.length === 2) server.store.quotas[name] = Number(value);
  else {
    const domain = existingDomain(server, words[0]);
    if (typeof domain === 'string') return domain;
    domain.quotas[name] = Number(value);
  }
  return connection.replyOk();
}

function introduce(server: XenStoreServer, connection: Connection, words: string[]): Outcome {
  if (words.length < 3) return 'EINVAL';
  const domid = parseDomid(words[0]);
  const port = Number(words[2]);
  if (domid < 0 || !/^-?[0-9]{1,20}$/.test(words[1]) || !/^[0-9]{1,10}$/.test(words[2]) || port === 0) {
    return 'EINVAL';
  }
  try {
    server.introduce(domid, Number(words[1]), port);
  } catch (error) {
    server.log(`domain ${domid} cannot be introduced: ${(error as Error).message}`);
    return parseXsdError((error as { code?: string }).code ?? '');
  }
  return connection.replyOk();
}

/** The domain of this number, introduced or not, or the error to answer. */
export function existingDomain(server: XenStoreServer, word: string): Domain | 'EINVAL' | 'ENOENT' {
  const domid = parseDomid(word);
  return domid < 0 ? 'EINVAL' : (server.store.domains.find(domid) ?? 'ENOENT');
}

/** The domain of this number that is introduced, or the error to answer. */
function introducedDomain(server: XenStoreServer, word: string | undefined): Domain | 'EINVAL' | 'ENOENT' {
  const domid = parseDomid(word ?? '');
  if (domid <= 0) return 'EINVAL';
  const domain = server.store.domains.get(domid);
  return domain?.introduced ? domain : 'ENOENT';
}
