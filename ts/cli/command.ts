import { parseArgs } from 'node:util';
import { MemorySlotsError } from '../core/errors.js';

/** One option of a command, from which both the parser and `--help` are made. */
export interface Option {
  /** Long name without the dashes. */
  readonly name: string;
  /** What stands for the value in the help (`N`, `FILE`); absent for a switch. */
  readonly value?: string;
  readonly help: string;
}

/** One sub-command of `memslots`: a file in this folder exports it as `command`. */
export interface Command {
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** Positional arguments as shown in the help, such as `LOG`. */
  readonly operands?: string;
  readonly options: readonly Option[];
  /** What else the help should say: exit statuses, how output is to be read. */
  readonly details?: string;
  /** Command lines worth copying. */
  readonly examples: readonly string[];
  /** Runs the command and resolves to the exit status. Throws {@link UsageError} for a wrong command line. */
  run(options: Values, operands: readonly string[]): Promise<number>;
}

/** A wrong command line: `memslots` prints the message and the way to the help, and exits with 2. */
export class UsageError extends MemorySlotsError {
  constructor(message: string) {
    super('INVALID', message);
  }
}

/** The options of a command line, by name. */
export class Values {
  readonly #values: Readonly<Record<string, string | boolean | undefined>>;

  constructor(values: Readonly<Record<string, string | boolean | undefined>>) {
    this.#values = values;
  }

  /** Whether a switch was given. */
  has(name: string): boolean {
    return this.#values[name] !== undefined;
  }

  string(name: string): string | undefined {
    const value = this.#values[name];
    return typeof value === 'string' ? value : undefined;
  }

  /** An integer from `least` to `most`; `otherwise` when the option is absent. */
  integer(name: string, otherwise: number, least = 0, most = Number.MAX_SAFE_INTEGER): number {
    const value = this.#values[name];
    if (value === undefined) return otherwise;
    const number = typeof value === 'string' && /^(0x[0-9a-f]+|\d+)$/i.test(value) ? Number(value) : Number.NaN;
    if (!Number.isSafeInteger(number) || number < least || number > most) {
      throw new UsageError(`--${name} takes an integer from ${least} to ${most}, not '${value}'`);
    }
    return number;
  }

  /** One of `choices`, the first being the default. */
  choice<T extends string>(name: string, choices: readonly [T, ...T[]]): T {
    const value = this.#values[name] ?? choices[0];
    const found = choices.find((choice) => choice === value);
    if (found === undefined) throw new UsageError(`--${name} takes one of ${choices.join(', ')}, not '${value}'`);
    return found;
  }
}

/** Parses `args` by the command's own table. Throws {@link UsageError} that names an unknown option and the nearest. */
export function parse(command: Command, args: readonly string[]): { values: Values; operands: string[] } {
  const known = new Map(command.options.map((option) => [option.name, option]));
  for (const argument of args) {
    if (argument === '--') break;
    const name = /^--([^=]+)/.exec(argument)?.[1];
    if (name === undefined || known.has(name)) continue;
    const guess = nearest(name, [...known.keys()]);
    throw new UsageError(`unknown option --${name}${guess === undefined ? '' : `: did you mean --${guess}?`}`);
  }
  try {
    const { values, positionals } = parseArgs({
      args: [...args],
      allowPositionals: command.operands !== undefined,
      options: Object.fromEntries(
        command.options.map((option) => [option.name, { type: option.value === undefined ? 'boolean' : 'string' }]),
      ) as Record<string, { type: 'boolean' | 'string' }>,
    });
    return { values: new Values(values as Record<string, string | boolean | undefined>), operands: positionals };
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** The word of `words` at the smallest edit distance from `word`, if that distance is at most 2. */
export function nearest(word: string, words: readonly string[]): string | undefined {
  const scored = words.map((candidate) => ({ candidate, distance: editDistance(word, candidate) }));
  return scored.filter(({ distance }) => distance <= 2).sort((a, b) => a.distance - b.distance)[0]?.candidate;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row[b.length]!;
}

/** The text of `memslots COMMAND --help`. */
export function help(command: Command): string {
  const rows = [...command.options, { name: 'help', help: 'show this text' } satisfies Option].map((option: Option) => {
    const left = `  --${option.name}${option.value === undefined ? '' : ` ${option.value}`}`;
    return `${left.padEnd(28)} ${option.help}`;
  });
  const operands = command.operands === undefined ? '' : ` ${command.operands}`;
  const lines = [`memslots ${command.name}${operands} [OPTION ...]`, '', command.summary, '', 'Options', ...rows];
  if (command.details !== undefined) lines.push('', command.details);
  lines.push('', 'Examples', ...command.examples.map((example) => `  ${example}`));
  return `${lines.join('\n')}\n`;
}
