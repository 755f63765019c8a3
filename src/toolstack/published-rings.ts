import { shorten } from '../xenbus/index.js';

/** What a frontend published of its rings for `vif-list`, of the first queue where there are several; null for what it did not. */
export interface PublishedRings {
  /** Ports, tx and rx with a slash between them, or the one for both. */
  readonly eventChannels: string | null;
  /** Grant references, tx and rx with a slash between them. */
  readonly ringRefs: string | null;
}

/** @param read reads a node below the frontend's directory */
export async function publishedRings(
  read: (node: string) => Promise<string | undefined>,
): Promise<PublishedRings> {
  const joined = async (...nodes: string[]): Promise<string | null> =>
    (await Promise.all(nodes.map(read))).flatMap(value => (value ? [shorten(value)] : [])).join('/') || null;
  const of = async (queue: string): Promise<PublishedRings> => ({
    eventChannels:
      (await joined(`${queue}event-channel-tx`, `${queue}event-channel-rx`)) ??
      (await joined(`${queue}event-channel`)),
    ringRefs: await joined(`${queue}tx-ring-ref`, `${queue}rx-ring-ref`),
  });
  const [flat, first] = [await of(''), await of('queue-0/')];
  return {
    eventChannels: flat.eventChannels ?? first.eventChannels,
    ringRefs: flat.ringRefs ?? first.ringRefs,
  };
}
