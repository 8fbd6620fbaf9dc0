import type { FlatRange, FlatViewSnapshot } from './event.js';
import { type LineParser, MalformedLine, noEvent } from './parser.js';

const newline = 10;
const title = /^FlatView #(\d{1,9})$/;
const addressSpace = /^ AS "(.*)", root: /;
const root = /^ Root memory region: |^ {2}No rendered FlatView/;
const rangeStart = /^ {2}[0-9a-f]{16}-/;
const range =
  /^ {2}([0-9a-f]{16})-([0-9a-f]{16}) \(prio (-?\d{1,10}), (nv-)?(ramd|romd|rom|ram|i\/o)\): (.*?)(?: @([0-9a-f]{16}))?( KVM)?$/;

/** The output of `info mtree -f`, of one moment or of several in a row; each flat view is an event. */
export class MtreeParser implements LineParser {
  readonly format = 'mtree';
  end = 0;
  readonly #decoder = new TextDecoder();
  #view: { line: number; view: number; addressSpaces: string[]; ranges: FlatRange[] } | undefined;

  parse(bytes: Uint8Array, start: number, line: number): FlatViewSnapshot | typeof noEvent | undefined {
    this.end = bytes.indexOf(newline, start);
    const text = this.#decoder.decode(bytes.subarray(start, this.end)).trimEnd();
    const begins = title.exec(text);
    if (begins !== null) {
      const before = this.close();
      this.#view = { line, view: Number(begins[1]), addressSpaces: [], ranges: [] };
      return before ?? noEvent;
    }
    if (text.startsWith('FlatView #')) throw new MalformedLine('the flat view has no number');
    if (this.#view === undefined) return undefined;
    if (text === '') return this.close() ?? noEvent;
    const name = addressSpace.exec(text);
    if (name !== null) this.#view.addressSpaces.push(name[1]!);
    else if (rangeStart.test(text)) this.#view.ranges.push(readRange(text));
    else if (!root.test(text)) return undefined;
    return noEvent;
  }

  close(): FlatViewSnapshot | undefined {
    const view = this.#view;
    this.#view = undefined;
    return view === undefined ? undefined : { kind: 'flat-view', time: undefined, thread: undefined, ...view };
  }
}

function readRange(text: string): FlatRange {
  const parts = range.exec(text);
  if (parts === null) throw new MalformedLine('the range has another form');
  const first = BigInt(`0x${parts[1]}`);
  const size = BigInt(`0x${parts[2]}`) - first + 1n;
  const type = parts[5] as FlatRange['type'];
  if (size <= 0n) throw new MalformedLine('the range ends before it begins');
  if (BigInt(Number(first)) !== first || (type !== 'i/o' && BigInt(Number(size)) !== size)) {
    throw new MalformedLine('the range has a number too large to be held exactly');
  }
  return {
    gpa: Number(first),
    size: Number(size),
    type,
    nonVolatile: parts[4] !== undefined,
    priority: Number(parts[3]),
    name: parts[6]!,
    offset: parts[7] === undefined ? 0 : Number.parseInt(parts[7], 16),
    kvm: parts[8] !== undefined,
  };
}
