import { IFNAMSIZ, type Net, type NetDevice, nameProblem } from '../net/index.js';

/** What ends a command early. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly text: string,
  ) {
    super(text);
  }
}

/** The word behind another one. @throws Refusal when there is none */
export function argument(args: string[], word: string): string {
  const value = args.shift();
  if (value === undefined) {
    throw new Refusal(255, `Command line is not complete. Try option "help": "${word}" wants a value.`);
  }
  return value;
}

/** @throws Refusal for what is no group */
export function parseGroup(text: string): number {
  if (text === 'default') return 0;
  if (/^\d+$/.test(text)) return Number(text);
  throw new Refusal(255, `Error: argument "${text}" is wrong: Invalid "group" value\n`);
}

/** @throws Refusal for what is no address of six bytes */
export function parseLinkAddress(text: string): Uint8Array {
  const parts = text.split(':');
  if (!parts.every(part => /^[0-9a-f]{1,2}$/i.test(part))) {
    throw new Refusal(1, `"${text}" is invalid lladdr.`);
  }
  if (parts.length !== 6) {
    throw new Refusal(1, `Invalid address length ${parts.length} - must be 6 bytes`);
  }
  return Uint8Array.from(parts, part => Number.parseInt(part, 16));
}

/** A number of 32 bits behind a word. @throws Refusal for what is none */
export function parseNumber(args: string[], word: string): number {
  const value = argument(args, word);
  if (!/^(0x[0-9a-f]+|\d+)$/i.test(value) || Number(value) > 0xffffffff) {
    throw new Refusal(255, `Error: argument "${value}" is wrong: Invalid "${word}" value\n`);
  }
  return Number(value);
}

/** @throws Refusal for what no device can be called; `as` is what iproute2 calls the argument */
export function checkName(name: string, as: string): string {
  const problem = nameProblem(name);
  if (problem !== null || name.length >= IFNAMSIZ) {
    throw new Refusal(255, `Error: argument "${name}" is wrong: "${as}" not a valid ifname\n${problem}`);
  }
  return name;
}

/** @throws Refusal when there is no device of that name */
export function findDevice(net: Net, name: string | undefined): NetDevice {
  if (name === undefined) throw new Refusal(255, 'Not enough information: "dev" argument is required.');
  const device = net.byName(name);
  if (device === undefined) throw new Refusal(1, `Cannot find device "${name}"`);
  return device;
}
