import { Arena, type MemoryRange } from '../core/arena.js';
import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import { wasm as core } from '../core/slots-wasm.js';
import type { Timeline } from './timeline.js';
import { hexadecimal } from './words.js';

/** Addresses above this aren't exact, and no slot lies there. */
const highest = Number.MAX_SAFE_INTEGER;

/**
 * Reads an address as people write it: hexadecimal with or without `0x`, blanks and `_` between digits ignored. Throws
 * `INVALID` for anything else, and above 2^53 − 1.
 */
export function parseAddress(text: string): number {
  const digits = text.trim().replace(/^0x/i, '').replace(/[\s_]/g, '');
  const value = /^[0-9a-f]{1,16}$/i.test(digits) ? Number.parseInt(digits, 16) : Number.NaN;
  if (!(value <= highest)) {
    throw new MemorySlotsError(
      'INVALID',
      `'${text.trim()}' is no address: write hexadecimal digits, up to 0x1fffffffffffff`,
    );
  }
  return value;
}

/** Who backs an address, and, if nobody does, which row comes next above it. Rows of the timeline's ranges. */
export interface Answer {
  readonly gpa: number;
  readonly row: number | undefined;
  readonly next: number | undefined;
}

/** Finds the range that holds an address, by the C core's own look-up. */
export class LookUp {
  readonly #timeline: Timeline;
  #module: WebAssembly.Module | undefined;
  #arena: Arena | undefined;
  #table = 0;
  #range = 0;
  #capacity = 0;
  /** The rows that the table holds: row `index` has the id `index`. */
  #rows: Uint32Array | undefined;

  constructor(timeline: Timeline) {
    this.#timeline = timeline;
  }

  /** Looks `gpa` up among `rows`, which ascend by address and don't overlap. */
  async find(rows: Uint32Array, gpa: number): Promise<Answer> {
    this.#module ??= await WebAssembly.compile(Uint8Array.from(atob(core), (character) => character.charCodeAt(0)));
    if (this.#rows !== rows) this.#fill(this.#module, rows);
    const { wasm } = this.#arena!;
    const found = wasm.find(this.#table, gpa);
    const next = found < 0 ? wasm.find_at_or_above(this.#table, gpa) : found;
    const row = (id: number) => (id < 0 ? undefined : rows[id]);
    return { gpa, row: row(found), next: row(next) };
  }

  #fill(module: WebAssembly.Module, rows: Uint32Array): void {
    if (this.#arena === undefined || rows.length > this.#capacity) {
      this.#capacity = Math.max(1024, 2 ** Math.ceil(Math.log2(rows.length + 1)));
      // Of a range 64 bytes, 12 of key and order, and a bit; and some room.
      this.#arena = Arena.create(module, this.#capacity * 80 + 65_536, false);
      this.#table = this.#arena.allocate(this.#arena.wasm.table_size(this.#capacity));
      this.#range = this.#arena.allocate(this.#arena.layout.range.bytes);
    }
    const arena = this.#arena;
    const { ranges } = this.#timeline;
    this.#rows = undefined;
    arena.wasm.table_init(this.#table, this.#capacity);
    for (const [id, row] of rows.entries()) {
      const gpa = ranges.gpa.at(row);
      if (gpa >= highest) break;
      const size = Math.min(ranges.size.at(row), highest - gpa);
      const range: MemoryRange = {
        gpa,
        size,
        host: 0,
        offset: 0,
        id,
        flags: 0,
        region: 0,
        since: 0,
        addressSpace: 0,
        guestMemfd: -1,
      };
      arena.writeRange(this.#range, range);
      const result = arena.wasm.insert(this.#table, this.#range);
      if (result < 0) {
        const message = `the range at ${hexadecimal(gpa)} can't be looked up among the others: ${errnoName(result)}`;
        throw new MemorySlotsError('INVALID', message);
      }
    }
    this.#rows = rows;
  }
}
