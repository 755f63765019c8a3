// The processors that benchmarks are pinned to.
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { wholeNumber, wrong } from '../scripts/arguments.mjs';

/** Those that this process may use: a container may leave it some only. */
function usable() {
  try {
    const [, list] = /^Cpus_allowed_list:\s+(\S+)/m.exec(readFileSync('/proc/self/status', 'utf8'));
    return list.split(',').flatMap(range => {
      const [first, last = first] = range.split('-').map(Number);
      return Array.from({ length: last - first + 1 }, (_, i) => first + i);
    });
  } catch {
    return Array.from({ length: availableParallelism() }, (_, i) => i);
  }
}

const CPUS = usable();

/** The option --cpu of a benchmark's command line. */
export const CPU_OPTION = { type: 'string', default: String(CPUS.at(-1)) };

/** The processor that the option names. */
export function cpuOf(values, usage) {
  const cpu = wholeNumber(values, 'cpu', 0, usage);
  if (!CPUS.includes(cpu)) wrong(`--cpu ${cpu}: of this machine's we may use ${CPUS.join(', ')}`, usage);
  return cpu;
}

/** The one beside it; the same where there is one only. */
export function nextCpu(cpu) {
  return CPUS[(CPUS.indexOf(cpu) + 1) % CPUS.length];
}
