import type { Arena, MemoryRange } from '../core/arena.js';
import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';

/** Sections that a transaction deletes and adds: arena offsets of two lists of ranges, and their lengths. */
export interface SectionChanges {
  readonly deletes: number;
  readonly deleteCount: number;
  readonly adds: number;
  readonly addCount: number;
}

/**
 * Who answers at a guest-physical address: the flat view of address space 0, published so that vCPU threads can look it
 * up while the owner commits. A reader never waits and never sees half a commit (csrc/map.c).
 */
export class SectionMap {
  /** Arena offset of the map: what readers in other threads need. */
  readonly offset: number;
  readonly #arena: Arena;
  readonly #scratch: number;
  readonly #capacity: number;

  /** Room for `capacity` ranges, split ones included. */
  constructor(arena: Arena, capacity: number) {
    this.#arena = arena;
    this.#capacity = capacity;
    this.offset = arena.allocate(arena.wasm.map_size(capacity));
    arena.wasm.map_init(this.offset, capacity);
    this.#scratch = arena.allocate(2 * capacity * arena.layout.range.bytes);
  }

  /**
   * Makes a transaction visible: its deleted and added sections, each list ascending, as ranges at arena offsets. Owner
   * thread only, inside the inhibit window if there is one. Throws `CAPACITY`, and nothing has changed then.
   */
  publish({ deletes, deleteCount, adds, addCount }: SectionChanges): void {
    const { wasm } = this.#arena;
    const room = 2 * this.#capacity;
    const result = wasm.map_commit(this.offset, deletes, deleteCount, adds, addCount, this.#scratch, room);
    if (result < 0) {
      const message = `the map of ${this.#capacity} sections can't take this commit: ${errnoName(result)}`;
      throw new MemorySlotsError('CAPACITY', message);
    }
  }
}

/** A reader of a {@link SectionMap}, in any thread: each needs its own. */
export class SectionMapReader {
  readonly #arena: Arena;
  readonly #map: number;
  readonly #out: number;

  /** `out` is an arena offset of room for one range that is this reader's alone. */
  constructor(arena: Arena, map: number, out: number) {
    this.#arena = arena;
    this.#map = map;
    this.#out = out;
  }

  /** Number of the last published commit. */
  get commit(): number {
    return Atomics.load(this.#arena.unsigned, (this.#map + this.#arena.layout.map.commit) >>> 2);
  }

  /** The section at `gpa`, or undefined where nothing answers. */
  find(gpa: number): MemoryRange | undefined {
    return this.#arena.wasm.map_lookup(this.#map, gpa, this.#out) < 0 ? undefined : this.#arena.readRange(this.#out);
  }
}
