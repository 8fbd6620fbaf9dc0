import type { ArenaHandle, MemoryRange } from '../../ts/core/arena.js';

/** What test/races/races.c does, for workers: layouts, each with a number, of which every field of every range tells. */
export const pageBytes = 4096;
const blocks = 8;
const blockPages = 16;
export const pages = blocks * blockPages;

/** Words that readers and the writer share. */
export const words = {
  /** Layouts of which publishing has begun, and of which it has ended. */
  begun: 0,
  ended: 1,
  /** Batches of look-ups during which publishing a layout ended, of all readers. */
  met: 2,
  /** Readers that have started. 1 once they are to end. */
  ready: 3,
  enough: 4,
  /** Answers and witnesses that were wrong: more than one is no news. */
  wrong: 5,
  /** Two words that are written in windows only and read inside the gate only, plainly. */
  witness: 6,
} as const;

/** Look-ups that a reader makes before it looks at the answers, so that most of its time goes into them. */
export const batch = 32;

/** What a reader is given. `map` and `out` are arena offsets: the map, and room for the ranges of a batch. */
export interface ReaderData {
  readonly module: string;
  readonly arena: ArenaHandle;
  readonly control: number;
  readonly line: number;
  readonly map: number;
  readonly out: number;
  readonly words: Int32Array;
  readonly seed: number;
}

/** What a reader did, and what it saw that may not be. */
export interface ReaderCounts {
  lookUps: number;
  /** Of these, answers that were compared with what the layouts say; `holes` is of these. */
  checked: number;
  holes: number;
  entered: number;
  wrongAnswers: number;
  wrongWitnesses: number;
}

export function mix(a: number, b: number): number {
  let hash = Math.imul(a, 0x9e3779b1) ^ Math.imul(b, 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  hash = Math.imul(hash ^ (hash >>> 12), 0x297a2d39);
  return (hash ^ (hash >>> 15)) >>> 0;
}

/** Whether layout `number` replaces `block`. Each replaces one at least; the first, all. */
function replaces(number: number, block: number): boolean {
  return number === 0 || number % blocks === block || mix(number, block) % 3 === 0;
}

/** The layout that made what `block` has in layout `number`. */
function maker(number: number, block: number): number {
  let from = number;
  while (!replaces(from, block)) from--;
  return from;
}

/** The range that layout `number`, which replaces its block, has at `page`: undefined if there is a hole. */
function rangeAt(number: number, page: number, id: number): MemoryRange | undefined {
  const block = Math.floor(page / blockPages);
  const length = 1 + (mix(number, block + 100) % 5);
  const inside = (page % blockPages) - ((page % blockPages) % length);
  const first = block * blockPages + inside;
  if (mix(number, first + 200) % 4 === 0) return undefined;
  const gpa = first * pageBytes;
  return {
    gpa,
    size: Math.min(length, blockPages - inside) * pageBytes,
    host: (number + 1) * 2 ** 28 + gpa,
    offset: (number + 1) * 7 * pageBytes + gpa,
    id,
    flags: 0x10000 + (number % 2) * 2,
    region: number,
    since: number ^ 0x5a5a,
    addressSpace: number % 2,
    guestMemfd: number + 3,
  };
}

/** The ranges of `block` as layout `number` makes them. */
function rangesOf(number: number, block: number): MemoryRange[] {
  const ranges: MemoryRange[] = [];
  for (let page = block * blockPages; page < (block + 1) * blockPages; page++) {
    const last = ranges.at(-1);
    if (last !== undefined && page * pageBytes < last.gpa + last.size) continue;
    const range = rangeAt(number, page, 0xffffffff);
    if (range !== undefined) ranges.push(range);
  }
  return ranges;
}

/** What publishing layout `number` deletes and adds, the one before being in place. */
export function changesOf(number: number): { deletes: MemoryRange[]; adds: MemoryRange[] } {
  const replaced = Array.from({ length: blocks }, (_, block) => block).filter((block) => replaces(number, block));
  return {
    deletes: number === 0 ? [] : replaced.flatMap((block) => rangesOf(maker(number - 1, block), block)),
    adds: replaced.flatMap((block) => rangesOf(number, block)),
  };
}

const names = Object.keys(rangesOf(0, 0)[0]!) as (keyof MemoryRange)[];

/** Whether one of the layouts `from` to `to` has `found` at `page`: a range, or undefined for a hole. */
export function isAnswer(from: number, to: number, page: number, found: MemoryRange | undefined): boolean {
  const block = Math.floor(page / blockPages);
  if (found === undefined) {
    for (let number = from; number <= to; number++) {
      if (rangeAt(maker(number, block), page, 0) === undefined) return true;
    }
    return false;
  }
  const number = found.region;
  if (number > to || !replaces(number, block) || (number < from && maker(from, block) !== number)) return false;
  const wanted = rangeAt(number, page, found.id);
  return wanted !== undefined && names.every((name) => found[name] === wanted[name]);
}
