import { readFile } from 'node:fs/promises';
import { text as readAll } from 'node:stream/consumers';
import { MemorySlotsError } from '../core/errors.js';
import { compareRanges, formatTextRange, formatViews, jsonRange, type TextRange } from '../memory/flat-text.js';
import { type FlattenedSpace, flatten, viewsOf } from '../memory/flatten.js';
import { type Command, UsageError } from './command.js';

/** What changes in one address space from one text to another. */
interface Difference {
  readonly key: string;
  readonly removed: readonly TextRange[];
  readonly added: readonly TextRange[];
}

async function flattenFile(file: string): Promise<FlattenedSpace[]> {
  let text: string;
  try {
    text = file === '-' ? await readAll(process.stdin) : await readFile(file, 'utf8');
  } catch (error) {
    throw new MemorySlotsError('INVALID', `can't read ${file}: ${(error as Error).message}`, { cause: error });
  }
  try {
    return flatten(text);
  } catch (error) {
    if (!(error instanceof MemorySlotsError)) throw error;
    const name = file === '-' ? 'standard input' : file;
    throw new MemorySlotsError(error.code, `${name}, ${error.message}`, { cause: error });
  }
}

function differences(before: readonly FlattenedSpace[], after: readonly FlattenedSpace[]): Difference[] {
  const keys = new Set([...before, ...after].map(({ key }) => key));
  return [...keys].flatMap((key) => {
    const [old, now] = [before, after].map((spaces) => spaces.find((space) => space.key === key)?.ranges ?? []);
    const { removed, added } = compareRanges(old!, now!);
    return removed.length === 0 && added.length === 0 ? [] : [{ key, removed, added }];
  });
}

function printJson(entries: readonly (readonly [string, unknown])[]): void {
  process.stdout.write(`${JSON.stringify({ addressSpaces: Object.fromEntries(entries) })}\n`);
}

/** `memslots flatten`. */
export const command: Command = {
  name: 'flatten',
  summary: "Prints the flat memory map that a QEMU memory tree ('info mtree') comes to",
  operands: 'FILE',
  options: [
    { name: 'diff', value: 'FILE2', help: 'print what changes from the map of FILE to that of FILE2' },
    { name: 'json', help: 'print JSON: ranges by address space, in bytes' },
  ],
  details: [
    "FILE holds what QEMU's monitor prints for 'info mtree' (with or without -D or -o); - is standard input. Prompts,",
    "log lines and flat views around it are skipped. The map is laid out like 'info mtree -f', without the KVM marks.",
    '',
    "The tree's text doesn't tell everything. An alias is taken to be writable, even if QEMU made it read-only. Of",
    'overlapping siblings of equal priority the one at the higher address shows, and at the same address the one',
    "printed first. An 'i/o' region with children is taken to have nothing of its own, apart from a few known by name.",
    '',
    "With --json, numbers that JSON can't hold exactly are decimal strings. Of several address spaces with one name,",
    "those after the first have ' #2', ' #3', ... added. 'readonly' is true for rom and romd.",
  ].join('\n'),
  examples: [
    'memslots flatten tree.txt',
    'memslots flatten before.txt --diff after.txt',
    'memslots flatten --json - < tree.txt',
  ],
  async run(options, operands) {
    const [file, ...more] = operands;
    if (file === undefined || more.length > 0) throw new UsageError('flatten takes one FILE');
    const other = options.string('diff');
    if (file === '-' && other === '-') throw new UsageError("only one of FILE and FILE2 can be '-'");
    const spaces = await flattenFile(file);
    if (other !== undefined) {
      const changed = differences(spaces, await flattenFile(other));
      if (options.has('json')) {
        printJson(
          changed.map(({ key, removed, added }) => [
            key,
            { removed: removed.map(jsonRange), added: added.map(jsonRange) },
          ]),
        );
        return 0;
      }
      const lines = changed.flatMap(({ key, removed, added }) => [
        `address-space: ${key}`,
        ...removed.map((range) => `- ${formatTextRange(range)}`),
        ...added.map((range) => `+ ${formatTextRange(range)}`),
        '',
      ]);
      process.stdout.write(lines.length === 0 ? 'The maps are the same.\n' : `${lines.join('\n')}\n`);
    } else if (options.has('json')) printJson(spaces.map(({ key, ranges }) => [key, ranges.map(jsonRange)]));
    else process.stdout.write(`${formatViews(viewsOf(spaces)).join('\n')}\n`);
    return 0;
  },
};
