/* `scripts/fuzz.mjs` calls it: CASES SEED fast|slow|both */
import { fuzzHost } from './fuzz.js';

/** Cases on one host before the next is made. */
const HOST_CASES = 2000;
const SEED_STEP = 0x9e3779b1;

const [cases, seed] = process.argv.slice(2, 4).map(Number);
const path = process.argv[4];
/** Every other host has the fast path, unless they all are to have it, or none. */
const hasFastPath = (one: number): boolean => (path === 'both' ? one % 2 === 0 : path === 'fast');
console.error(`${cases} cases, seed ${seed}`);
const total = { cases: 0, netbackFatal: 0, netfrontBroken: 0, delivered: 0, fast: 0 };
const start = Date.now();
let told = start;
for (let host = 0; total.cases < cases; host++) {
  // Far apart, so that a run with the next seed has other hosts; an odd step, so that every other one is even.
  const one = (seed + Math.imul(host, SEED_STEP)) >>> 0;
  try {
    const result = fuzzHost(one, Math.min(HOST_CASES, cases - total.cases), hasFastPath(one));
    for (const key of Object.keys(total) as (keyof typeof total)[]) total[key] += result[key];
  } catch (error) {
    console.error(error);
    const path = hasFastPath(one) ? 'fast' : 'slow';
    console.error(`again: npm run fuzz -- --seed ${one} --cases ${HOST_CASES} --path ${path}`);
    process.exit(1);
  }
  if (Date.now() - told < 5000 && total.cases < cases) continue;
  told = Date.now();
  const rate = Math.round((1000 * total.cases) / (told - start));
  const { netbackFatal, netfrontBroken, delivered, fast } = total;
  console.error(
    `${total.cases} cases, ${rate}/s; ${netbackFatal} vifs disabled, ${netfrontBroken} devices broken, ` +
      `${delivered} packets between bystanders, ${fast} took the fast path`,
  );
}
console.error(`seed ${seed}: nothing went wrong in ${total.cases} cases`);
