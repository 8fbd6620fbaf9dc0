import { MemorySlotsError } from '../core/errors.js';

/** One region line of `info mtree` with the lines below it. Addresses and sizes are in bytes. */
export interface MtreeNode {
  /** Where it was read, to name in errors. */
  readonly at: TextLine;
  readonly name: string;
  /** QEMU's word for what it is: `ram`, `rom`, `ramd`, `romd`, `i/o`, or one this library doesn't know. */
  readonly kind: string;
  readonly nonvolatile: boolean;
  readonly priority: number;
  /** Guest-physical address as printed. */
  readonly start: bigint;
  /** 1 to 2^64. QEMU prints a size of 0 as if it were 1. */
  readonly size: bigint;
  /** Offset in the region around it; of the outermost region, its address as printed. */
  readonly offset: bigint;
  readonly enabled: boolean;
  readonly alias: MtreeAlias | undefined;
  readonly children: MtreeNode[];
}

/** What an alias line says of its target, which it names by name only. */
export interface MtreeAlias {
  /** The alias's name and its target's: several readings when a name holds ` @`, the likeliest first. */
  readonly readings: readonly { readonly name: string; readonly target: string }[];
  /** Where in the target it starts. */
  readonly offset: bigint;
}

/** A tree of `info mtree` under the lines that name it. */
export interface MtreeBlock {
  readonly heading: 'address-space' | 'memory-region';
  /** Several address spaces may share one tree. */
  readonly names: { readonly name: string; readonly at: TextLine }[];
  /** Undefined where the outermost region is disabled, which QEMU doesn't print unless asked. */
  root: MtreeNode | undefined;
}

/** A line of the text: its number from 1, and what it holds. */
export interface TextLine {
  readonly number: number;
  readonly content: string;
}

interface EndedLine extends TextLine {
  readonly end: 'LF' | 'CR LF' | 'none';
}

/** What `info mtree` printed. */
export interface MtreeText {
  readonly blocks: readonly MtreeBlock[];
  /** Whether an empty line or a prompt followed the last block, as it does where the text is whole. */
  readonly whole: boolean;
  readonly last: TextLine;
}

const headings = ['address-space:', 'memory-region:'];
const headingLine = /^(address-space|memory-region): ?(.*)$/;
const regionLine =
  /^( +)(\[DETECTED OVERFLOW!\] ?)?([0-9a-f]{16})-([0-9a-f]{16}) \(prio (-?\d+), (nv-)?([^()]*)\):(?: (.*))?$/;
const ownerNote = / (?:owner|parent):\{[^{}]*\}$/;
const aliasRange = / ([0-9a-f]{16})-([0-9a-f]{16})$/;
const likeRegion = /^\s*(?:\[DETECTED OVERFLOW!\] ?)?[0-9a-f]{8,}-[0-9a-f]/;
/** What QEMU writes to its log while a monitor prints. */
const logLine = /^(?:\d{4}-\d\d-\d\dT\S+ )?(?:\S*\/)?qemu[\w.-]*: /;

/** An `INVALID` error about one line of a text. */
export function lineError({ number, content }: TextLine, problem: string, options?: ErrorOptions): MemorySlotsError {
  const shown = content.length > 200 ? `${content.slice(0, 200)}...` : content;
  return new MemorySlotsError('INVALID', `line ${number}: ${problem}: '${shown}'`, options);
}

/** The lines of a text, which LF or CR LF ends, the last one perhaps not. */
export function* linesOf(text: string): Generator<EndedLine> {
  let number = 0;
  for (let start = 0; start < text.length; ) {
    const end = text.indexOf('\n', start);
    const stop = end < 0 ? text.length : end;
    const line = text.slice(start, stop);
    const content = line.replace(/\r+$/, '');
    yield { number: ++number, content, end: end < 0 ? 'none' : content === line ? 'LF' : 'CR LF' };
    start = stop + 1;
  }
}

/**
 * Reads the output of QEMU's `info mtree`, with or without `-D` and `-o`, and with whatever else a monitor prints around
 * it: prompts, commands, log lines, flat views.
 *
 * Throws `INVALID` with the number and content of the line where the text is malformed or breaks off.
 */
export function readMtree(text: string): MtreeText {
  const reader = new MtreeReader();
  for (const line of linesOf(text)) reader.read(line);
  return reader.end();
}

class MtreeReader {
  readonly #blocks: MtreeBlock[] = [];
  /** The block being read, if any. */
  #block: MtreeBlock | undefined;
  /** The last region read and those around it, outermost first. */
  #path: MtreeNode[] = [];
  /** Lines from this depth on are below a region that isn't printed because it is disabled. */
  #hiddenFrom = Number.POSITIVE_INFINITY;
  #inFlatView = false;
  #sawFlatView = false;
  #last: EndedLine = { number: 0, content: '', end: 'none' };
  /** Whether lines end as a monitor ends them, which then ends its last line too. */
  #monitorEnds = false;

  read(line: EndedLine): void {
    this.#last = line;
    this.#monitorEnds ||= line.end === 'CR LF';
    const content = line.content.replace(/^(?:\(qemu\) ?)+/, '');
    const blank = content.trim() === '' && (content === '' || line.end !== 'none');
    if (content !== line.content || blank) this.#close();
    const heading = headingLine.exec(content);
    if (heading !== null) {
      this.#inFlatView = false;
      this.#open(heading[1] as MtreeBlock['heading'], heading[2]!, line);
    } else if (content.startsWith('FlatView #')) {
      this.#close();
      this.#inFlatView = true;
      this.#sawFlatView = true;
    } else if (this.#block !== undefined) {
      if (!logLine.test(content)) this.#region(this.#block, { number: line.number, content });
    } else if (!this.#inFlatView && likeRegion.test(content)) {
      throw lineError(line, "a region without an 'address-space:' or 'memory-region:' line above it");
    }
  }

  end(): MtreeText {
    const treeless = this.#treeless();
    if (treeless !== undefined) {
      throw lineError(this.#last, `the text ends before the tree of '${treeless.names.at(-1)!.name}'`);
    }
    if (this.#breaksOff()) throw lineError(this.#last, 'the text ends within this line');
    if (!this.#blocks.some(({ heading }) => heading === 'address-space')) {
      const hint = this.#sawFlatView
        ? " (a flat view is what 'info mtree -f' prints, 'info mtree' prints the tree)"
        : '';
      throw lineError(this.#last, `the text ends without an 'address-space:' line${hint}`);
    }
    return { blocks: this.#blocks, whole: this.#block === undefined, last: this.#last };
  }

  /** Whether the last line is only the beginning of one, as far as that can be told without its end. */
  #breaksOff(): boolean {
    const { content, end } = this.#last;
    if (end !== 'none') return false;
    if (this.#block === undefined) return content !== '' && headings.some((heading) => heading.startsWith(content));
    // A whole text ends with the targets of its aliases; those can be compared with what else is known of them.
    return this.#monitorEnds && this.#block.heading === 'address-space';
  }

  /** The block being read, if no line of its tree has come yet. */
  #treeless(): MtreeBlock | undefined {
    const bare = this.#block?.root === undefined && this.#hiddenFrom === Number.POSITIVE_INFINITY;
    return bare ? this.#block : undefined;
  }

  #close(): void {
    this.#block = undefined;
    this.#inFlatView = false;
  }

  #open(heading: MtreeBlock['heading'], name: string, at: TextLine): void {
    const treeless = this.#treeless();
    if (treeless !== undefined) {
      if (heading === 'address-space' && treeless.heading === 'address-space') {
        treeless.names.push({ name, at });
        return;
      }
      throw lineError(at, `the tree of '${treeless.names.at(-1)!.name}' is missing before this line`);
    }
    this.#block = { heading, names: [{ name, at }], root: undefined };
    this.#blocks.push(this.#block);
    this.#path = [];
    this.#hiddenFrom = Number.POSITIVE_INFINITY;
  }

  #region(block: MtreeBlock, line: TextLine): void {
    const match = regionLine.exec(line.content);
    if (match === null) throw lineError(line, 'not a region of a memory tree, or only part of one');
    const [, indent, overflow, from, to, priority, nonvolatile, kind] = match;
    if (indent!.length % 2 !== 0) throw lineError(line, 'indented by an odd number of spaces');
    const depth = indent!.length / 2 - 1;
    if (depth >= this.#hiddenFrom) return;
    this.#hiddenFrom = Number.POSITIVE_INFINITY;
    if (depth === 0 && block.root !== undefined) throw lineError(line, 'a second outermost region in one tree');

    const parent = this.#path[depth - 1];
    const [start, end] = [BigInt(`0x${from}`), BigInt(`0x${to}`)];
    if (end < start && overflow === undefined) throw lineError(line, 'a region that ends before it starts');
    const { rest, enabled } = withoutNotes(match[8] ?? '');
    const size = BigInt.asUintN(64, end - start) + 1n;
    const node: MtreeNode = {
      at: line,
      name: rest,
      kind: kind!,
      nonvolatile: nonvolatile !== undefined,
      priority: Number(priority),
      start,
      size,
      offset: BigInt.asUintN(64, start - (parent?.start ?? 0n)),
      enabled,
      alias: readAlias(rest, size, line),
      children: [],
    };
    if (depth > 0 && (parent === undefined || (depth > 1 && !fits(node, parent)))) {
      // What isn't printed is the region around this one, so this isn't visible either.
      this.#hiddenFrom = depth;
      return;
    }
    if (parent === undefined) block.root = node;
    else parent.children.push(node);
    this.#path.length = depth;
    this.#path.push(node);
  }
}

/**
 * Whether `node` can be a child of `parent`, which has none if it is an alias, and else has them by address, then by
 * descending priority, the way QEMU orders them. If not,
 * it is below a disabled sibling of `parent` whose own line isn't printed.
 */
function fits(node: MtreeNode, parent: MtreeNode): boolean {
  if (parent.alias !== undefined || node.offset >= parent.size) return false;
  const before = parent.children.at(-1);
  if (before === undefined || before.offset < node.offset) return true;
  return before.offset === node.offset && before.priority >= node.priority;
}

/** A region's text without `[disabled]` and who owns it. */
function withoutNotes(text: string): { rest: string; enabled: boolean } {
  let rest = text;
  while (ownerNote.test(rest)) rest = rest.replace(ownerNote, '');
  const disabled = ' [disabled]';
  return rest.endsWith(disabled) ? { rest: rest.slice(0, -disabled.length), enabled: false } : { rest, enabled: true };
}

function readAlias(text: string, size: bigint, line: TextLine): MtreeAlias | undefined {
  if (!text.startsWith('alias ')) return undefined;
  const range = aliasRange.exec(text);
  const names = range === null ? '' : text.slice('alias '.length, range.index);
  const readings: { name: string; target: string }[] = [];
  for (let cut = names.lastIndexOf(' @'); cut >= 0; cut = cut === 0 ? -1 : names.lastIndexOf(' @', cut - 1)) {
    readings.push({ name: names.slice(0, cut), target: names.slice(cut + 2) });
  }
  // An alias without a name leaves its separator at the very start.
  if (readings.length === 0 && names.startsWith('@')) readings.push({ name: '', target: names.slice(1) });
  if (range === null || readings.length === 0) throw lineError(line, 'an alias without its target and range');
  const [from, to] = [BigInt(`0x${range[1]}`), BigInt(`0x${range[2]}`)];
  if (BigInt.asUintN(64, to - from) + 1n !== size) {
    throw lineError(line, 'an alias whose range in its target has another size than its own');
  }
  return { readings, offset: from };
}
