// The command lines of the project's own programs: --help, and errors that say what would be right.
import { parseArgs } from 'node:util';

/** Ends the program as one that was called wrongly. */
export function wrong(message, usage) {
  console.error(`${message}\n${usage.trimEnd()}`);
  process.exit(2);
}

/**
 * @param usage what --help prints
 * @param options as util.parseArgs has them
 * @param known what may be named; null for anything
 * @returns the options' values, and what is named
 */
export function commandLine(usage, options, known = []) {
  let parsed;
  try {
    const help = { type: 'boolean', short: 'h' };
    parsed = parseArgs({ options: { ...options, help }, allowPositionals: true });
  } catch (error) {
    // Node's second sentence is about names that begin with a dash.
    wrong(error.message.split('. ')[0], usage);
  }
  const { values, positionals: names } = parsed;
  if (values.help) {
    console.log(usage.trimEnd());
    process.exit(0);
  }
  for (const name of names) {
    if (known !== null && !known.includes(name)) wrong(`there is no "${name}"`, usage);
  }
  return { values, names };
}

/** The whole number that an option has. */
export function wholeNumber(values, option, least, usage) {
  const value = Number(values[option]);
  if (!Number.isInteger(value) || value < least)
    wrong(`--${option} ${values[option]}: want a whole number from ${least} on`, usage);
  return value;
}
