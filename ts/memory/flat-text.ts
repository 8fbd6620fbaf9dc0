import { type Address, add, address, subtract } from './address.js';
import { lineError, linesOf, type TextLine } from './mtree-text.js';

/** One range of a flat map as QEMU's monitor prints it. Addresses and sizes are in bytes. */
export interface TextRange {
  readonly gpa: Address;
  readonly size: Address;
  readonly priority: number;
  /** QEMU's word: `ram`, `rom`, `romd`, `ramd`, `i/o`, or an unknown one, with `nv-` before it if non-volatile. */
  readonly kind: string;
  readonly region: string;
  readonly offset: Address;
  /** Whether a memory slot of KVM maps exactly this range. */
  readonly kvm: boolean;
}

/** A flat map with the address spaces that share it. */
export interface TextView {
  readonly addressSpaces: readonly { readonly name: string; readonly root: string }[];
  /** The region whose content it is; undefined for an empty map. */
  readonly root: string | undefined;
  readonly ranges: readonly TextRange[];
}

const viewLine = /^FlatView #\d+$/;
const spaceLine = /^ AS "(.*)", root: (.*)$/;
const rootLine = /^ Root memory region: (.*)$/;
const rangeLine = /^ {2}([0-9a-f]{16})-([0-9a-f]{16}) \(prio (-?\d+), ([^()]*)\): ?(.*)$/;
const rangeTail = /^(.*?)(?: @([0-9a-f]{16}))?( KVM)?$/;

/** A range as one line of `info mtree -f`, without its indentation. */
export function formatTextRange({ gpa, size, priority, kind, region, offset, kvm }: TextRange): string {
  const last = subtract(add(gpa, size), 1);
  const at = offset === 0 ? '' : ` @${digits(offset)}`;
  return `${digits(gpa)}-${digits(last)} (prio ${priority}, ${kind}): ${region}${at}${kvm ? ' KVM' : ''}`;
}

/** Flat maps as `info mtree -f` lays them out, a line an entry, each ended by an empty line. */
export function formatViews(views: readonly TextView[]): string[] {
  return views.flatMap(({ addressSpaces, root, ranges }, index) => [
    `FlatView #${index}`,
    ...addressSpaces.map((space) => ` AS "${space.name}", root: ${space.root}`),
    ` Root memory region: ${root ?? '(none)'}`,
    ...(ranges.length === 0 ? ['  No rendered FlatView'] : ranges.map((range) => `  ${formatTextRange(range)}`)),
    '',
  ]);
}

/**
 * Reads the output of `info mtree -f`. What stands outside its blocks is skipped. Throws `INVALID` with the number and
 * content of a line that is malformed.
 */
export function readViews(text: string): TextView[] {
  const views: { addressSpaces: { name: string; root: string }[]; root: string | undefined; ranges: TextRange[] }[] =
    [];
  let open = false;
  for (const line of linesOf(text)) {
    if (viewLine.test(line.content)) {
      views.push({ addressSpaces: [], root: undefined, ranges: [] });
      open = true;
    } else if (line.content.trim() === '' || line.content.startsWith('(qemu)')) open = false;
    if (!open || !line.content.startsWith(' ')) continue;
    const view = views.at(-1)!;
    const space = spaceLine.exec(line.content);
    const root = rootLine.exec(line.content);
    if (space !== null) view.addressSpaces.push({ name: space[1]!, root: space[2]! });
    else if (root !== null) view.root = root[1] === '(none)' ? undefined : root[1]!;
    else if (line.content !== '  No rendered FlatView') view.ranges.push(readRange(line));
  }
  return views;
}

function readRange(line: TextLine): TextRange {
  const match = rangeLine.exec(line.content);
  const tail = rangeTail.exec(match?.[5] ?? '');
  if (match === null || tail === null) throw lineError(line, 'not a range of a flat view, or only part of one');
  const [first, last] = [BigInt(`0x${match[1]}`), BigInt(`0x${match[2]}`)];
  if (last < first) throw lineError(line, 'a range that ends before it starts');
  return {
    gpa: address(first),
    size: address(last - first + 1n),
    priority: Number(match[3]),
    kind: match[4]!,
    region: tail[1]!,
    offset: address(BigInt(`0x${tail[2] ?? '0'}`)),
    kvm: tail[3] !== undefined,
  };
}

/** Whether reads of the range come from memory, which is what slots map. */
export function isRamKind(kind: string): boolean {
  return ['ram', 'rom', 'romd', 'ramd'].includes(kind.replace(/^nv-/, ''));
}

/** What one map has and the other hasn't, each by address. The number of a range's priority doesn't count. */
export function compareRanges(
  before: readonly TextRange[],
  after: readonly TextRange[],
): { removed: TextRange[]; added: TextRange[] } {
  const keyOf = (range: TextRange) => formatTextRange({ ...range, priority: 0, kvm: false });
  const [old, now] = [new Set(before.map(keyOf)), new Set(after.map(keyOf))];
  return {
    removed: before.filter((range) => !now.has(keyOf(range))),
    added: after.filter((range) => !old.has(keyOf(range))),
  };
}

/** A range as the commands' JSON has it: numbers that JSON can't hold exactly are decimal strings. */
export function jsonRange({ gpa, size, kind, region, offset }: TextRange): Record<string, unknown> {
  const exact = (value: Address) => (typeof value === 'bigint' ? String(value) : value);
  const readonly = /^(nv-)?romd?$/.test(kind);
  return { gpa: exact(gpa), size: exact(size), kind, region, offset: exact(offset), readonly };
}

function digits(value: Address): string {
  return value.toString(16).padStart(16, '0');
}
