import { MemorySlotsError } from '../core/errors.js';
import type { TraceEvent, TraceFormat } from './event.js';
import { JsonParser } from './json.js';
import { slack } from './literal.js';
import { MtreeParser } from './mtree.js';
import { type LineParser, MalformedLine, noEvent } from './parser.js';
import { QemuParser } from './qemu.js';
import { StraceParser } from './strace.js';

const newline = 10;

/** Lines longer than this, in bytes, are skipped and counted. */
export const longestLine = 1 << 20;

/** What was read so far. */
export interface TraceCounts {
  /** All lines. */
  lines: number;
  /** Lines that hold nothing for this reader: warnings, other events, other system calls. */
  foreign: number;
  /** Lines of a known kind that can't be read, skipped because the reader is lenient. */
  malformed: number;
  /** Lines longer than {@link longestLine}, skipped. */
  tooLong: number;
  /** Slot calls whose arguments the log doesn't show (strace prints those of `REGION2` as a pointer). */
  unreadable: number;
}

/** How strictly to read. */
export interface ReadOptions {
  /** Skip and count lines of a known kind that can't be read, instead of throwing. */
  readonly lenient?: boolean;
}

/**
 * Turns bytes into events. The format is that of the first line which one of the known formats understands: until
 * then every line is shown to all of them, so none misses what it must remember.
 *
 * Its memory is that of the longest line and of one chunk.
 */
export class TraceParser {
  readonly #lenient: boolean;
  readonly #candidates: readonly LineParser[] = [
    new QemuParser(),
    new StraceParser(),
    new MtreeParser(),
    new JsonParser(),
  ];
  #parser: LineParser | undefined;
  #buffer = new Uint8Array(1 << 16);
  /** Bytes at the start of the buffer that wait for the rest of their line. */
  #held = 0;
  /** In the middle of a line that is too long. */
  #skipping = false;
  #lines = 0;
  #foreign = 0;
  #malformed = 0;
  #tooLong = 0;

  constructor(options: ReadOptions = {}) {
    this.#lenient = options.lenient ?? false;
  }

  /** The log's format, `undefined` until a line tells it. */
  get format(): TraceFormat | undefined {
    return this.#parser?.format;
  }

  get counts(): TraceCounts {
    return {
      lines: this.#lines,
      foreign: this.#foreign,
      malformed: this.#malformed,
      tooLong: this.#tooLong,
      unreadable: this.#parser?.unreadable ?? 0,
    };
  }

  /**
   * The events of all lines that `chunk` completes. `chunk` isn't kept. Throws `INVALID` with the number of a
   * malformed line, unless lenient; the parser is of no further use then.
   */
  push(chunk: Uint8Array): TraceEvent[] {
    const events: TraceEvent[] = [];
    // Buffers of all kinds become plain arrays, so that the compiler sees one kind.
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length);
    let start = 0;
    if (this.#held > 0 || this.#skipping) {
      start = bytes.indexOf(newline) + 1;
      this.#hold(start === 0 ? bytes : bytes.subarray(0, start));
      if (start === 0) return events;
      this.#parseHeld(events);
    }
    // Whole lines are read where they are, all but those at the very end, behind which the chunk has no slack.
    const end = bytes.lastIndexOf(newline, bytes.length - 1 - slack) + 1;
    if (bytes.length > slack && end > start) {
      this.#parse(bytes, start, end, events);
      start = end;
    }
    while (start < bytes.length) {
      const next = bytes.indexOf(newline, start) + 1;
      this.#hold(bytes.subarray(start, next === 0 ? bytes.length : next));
      if (next === 0) break;
      this.#parseHeld(events);
      start = next;
    }
    return events;
  }

  /** Keeps the beginning of a line. */
  #hold(bytes: Uint8Array): void {
    const length = this.#held + bytes.length;
    if (this.#skipping || length > longestLine + 1) {
      this.#skipping = true;
      this.#held = 0;
      // The line's end is all that matters now.
      if (bytes.at(-1) === newline) this.#buffer[this.#held++] = newline;
      return;
    }
    if (length + slack > this.#buffer.length) {
      const larger = new Uint8Array(2 ** Math.ceil(Math.log2(length + slack)));
      larger.set(this.#buffer.subarray(0, this.#held));
      this.#buffer = larger;
    }
    this.#buffer.set(bytes, this.#held);
    this.#held = length;
  }

  /** Reads the held line, which is complete. */
  #parseHeld(events: TraceEvent[], note = ''): void {
    const length = this.#held;
    this.#held = 0;
    this.#parse(this.#buffer, 0, length, events, note);
  }

  /** The events that only the end of the log completes; a last line without a newline counts as one. */
  end(): TraceEvent[] {
    const events: TraceEvent[] = [];
    if (this.#held > 0 || this.#skipping) {
      this.#hold(Uint8Array.of(newline));
      this.#parseHeld(events, '; the log ends in the middle of this line');
    }
    const last = this.#parser?.close?.();
    if (last !== undefined) events.push(last);
    return events;
  }

  /** Appends to `events` those of the lines in `bytes` from `start` up to `complete`, which is behind a newline. */
  #parse(bytes: Uint8Array, start: number, complete: number, events: TraceEvent[], note = ''): void {
    let at = start;
    while (at < complete) {
      const line = ++this.#lines;
      if (line === 1 && bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) at = 3;
      if (this.#skipping) {
        this.#skipping = false;
        this.#tooLong++;
        at = bytes.indexOf(newline, at) + 1;
        continue;
      }
      try {
        const event = this.#parser === undefined ? this.#detect(bytes, at, line) : this.#parser.parse(bytes, at, line);
        const { end } = this.#parser ?? this.#candidates[0]!;
        if (end - at > longestLine) this.#tooLong++;
        else if (event === undefined) this.#foreign++;
        else if (event !== noEvent) events.push(event);
        at = end + 1;
      } catch (error) {
        if (!(error instanceof MalformedLine)) throw error;
        const end = bytes.indexOf(newline, at);
        if (end - at > longestLine) this.#tooLong++;
        else if (this.#lenient) this.#malformed++;
        else {
          const text = excerpt(bytes, at, end);
          throw new MemorySlotsError('INVALID', `line ${line} can't be read: ${error.message}${note}: ${text}`);
        }
        at = end + 1;
      }
    }
  }

  /** Shows a line to all formats; the first to understand it is the log's. */
  #detect(bytes: Uint8Array, start: number, line: number): ReturnType<LineParser['parse']> {
    for (const parser of this.#candidates) {
      try {
        const event = parser.parse(bytes, start, line);
        if (event === undefined) continue;
        this.#parser = parser;
        return event;
      } catch (error) {
        if (error instanceof MalformedLine) this.#parser = parser;
        throw error;
      }
    }
    return undefined;
  }
}

/** At most 200 bytes of a line, control characters shown as a question mark. */
function excerpt(bytes: Uint8Array, start: number, end: number): string {
  const shown = bytes.subarray(start, Math.min(end, start + 200));
  const text = Array.from(shown, (byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : '?')).join('');
  return `'${text}${end - start > 200 ? '…' : ''}'`;
}

/** Where a trace comes from: bytes in pieces of any size, plain or compressed with gzip. */
export type TraceSource = AsyncIterable<Uint8Array> | ReadableStream<Uint8Array>;

/**
 * A log being read: iterate over its events, or over {@link batches} of them, once. `format` and `counts` tell the
 * state reached.
 */
export class Trace implements AsyncIterable<TraceEvent> {
  readonly #source: TraceSource;
  readonly #parser: TraceParser;

  constructor(source: TraceSource, options: ReadOptions = {}) {
    this.#source = source;
    this.#parser = new TraceParser(options);
  }

  get format(): TraceFormat | undefined {
    return this.#parser.format;
  }

  get counts(): TraceCounts {
    return this.#parser.counts;
  }

  /** The events of one piece of the log after another: far cheaper than waiting for each event. */
  async *batches(): AsyncGenerator<readonly TraceEvent[], void, undefined> {
    for await (const chunk of await plain(this.#source)) {
      const events = this.#parser.push(chunk);
      if (events.length > 0) yield events;
    }
    const events = this.#parser.end();
    if (events.length > 0) yield events;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<TraceEvent, void, undefined> {
    for await (const batch of this.batches()) yield* batch;
  }
}

/**
 * Reads a log as it comes: QEMU's (every version's form), strace's, `info mtree -f` or this library's JSON, which is
 * told by its content. Iterating throws `INVALID` at a malformed line, with its number, unless `lenient`.
 *
 * ```ts
 * for await (const event of readTrace(file.stream())) if (event.kind === 'slot') console.log(event.gpa);
 * ```
 */
export function readTrace(source: TraceSource, options: ReadOptions = {}): Trace {
  return new Trace(source, options);
}

/** Takes gzip off, if the first two bytes say that it is there. */
async function plain(source: TraceSource): Promise<AsyncIterable<Uint8Array>> {
  const chunks = iterate(source)[Symbol.asyncIterator]();
  const first: Uint8Array[] = [];
  let seen = 0;
  while (seen < 2) {
    const { done, value } = await chunks.next();
    if (done) break;
    // A source may use its buffers again.
    first.push(value.slice());
    seen += value.length;
  }
  const head = Uint8Array.from(first.flatMap((chunk) => [...chunk.subarray(0, 2)]));
  const all = resume(first, chunks);
  return head[0] === 0x1f && head[1] === 0x8b ? decompress(all) : all;
}

async function* resume(first: Uint8Array[], rest: AsyncIterator<Uint8Array>): AsyncGenerator<Uint8Array> {
  try {
    yield* first;
    for (;;) {
      const { done, value } = await rest.next();
      if (done) return;
      yield value;
    }
  } finally {
    await rest.return?.();
  }
}

/** Small pieces: each is held whole while it is decompressed, to many times its size. */
async function* slices(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  for await (const chunk of source) {
    for (let start = 0; start < chunk.length; start += 1 << 14) yield chunk.subarray(start, start + (1 << 14));
  }
}

async function* decompress(compressed: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const source = slices(compressed);
  let broken: { error: unknown } | undefined;
  const stream = new ReadableStream<Uint8Array<ArrayBuffer>>({
    async pull(controller) {
      try {
        const { done, value } = await source.next();
        if (done) controller.close();
        else controller.enqueue(new Uint8Array(value));
      } catch (error) {
        broken = { error };
        throw error;
      }
    },
    async cancel() {
      await source.return(undefined);
    },
  });
  try {
    yield* iterate(stream.pipeThrough(new DecompressionStream('gzip')));
  } catch (error) {
    if (broken !== undefined) throw broken.error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new MemorySlotsError('INVALID', `the log's gzip data can't be read: ${reason}`, { cause: error });
  }
}

/** Streams can't be iterated over in every browser. */
async function* iterate(source: TraceSource): AsyncGenerator<Uint8Array> {
  if (Symbol.asyncIterator in source) {
    yield* source;
    return;
  }
  const reader = (source as ReadableStream<Uint8Array>).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel();
  }
}
