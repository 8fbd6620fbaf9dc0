import type { MemoryRange } from '../core/arena.js';
import { formatRange } from '../core/checks.js';
import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import type { Backend, HostMemory } from './backend.js';
import type { Planner } from './planner.js';

/** Pages in one chunk of a sparse bitmap. */
const chunkPages = 1 << 15;

/** One bit a page of some memory, in chunks that exist only where a bit was set. */
class SparseBitmap {
  readonly #chunks = new Map<number, Uint32Array>();

  set(page: number): void {
    const index = Math.floor(page / chunkPages);
    let chunk = this.#chunks.get(index);
    if (chunk === undefined) {
      chunk = new Uint32Array(chunkPages / 32);
      this.#chunks.set(index, chunk);
    }
    const bit = page % chunkPages;
    chunk[bit >>> 5]! |= 1 << (bit & 31);
  }

  /** Clears the bits from `first` up to `end` and answers which were set, ascending. */
  take(first: number, end: number): number[] {
    const pages: number[] = [];
    for (const [index, chunk] of [...this.#chunks].sort((a, b) => a[0] - b[0])) {
      const base = index * chunkPages;
      if (base >= end || base + chunkPages <= first) continue;
      for (const [word, bits] of chunk.entries()) {
        for (let rest = bits; rest !== 0; rest &= rest - 1) {
          const bit = word * 32 + (31 - Math.clz32(rest & -rest));
          if (base + bit < first || base + bit >= end) continue;
          pages.push(base + bit);
          chunk[word]! &= ~(1 << (bit & 31));
        }
      }
    }
    return pages;
  }
}

/** One memory and the marks of its pages. */
interface Marked {
  readonly memory: HostMemory;
  readonly pages: SparseBitmap;
}

/**
 * Which pages of which memory were written: what KVM's dirty log said when it was last read, and what the VMM wrote
 * itself. It is kept by memory, not by slot, so it outlives slots: bits of a slot that goes away are read inside the
 * window and are here when somebody asks. Owner thread only.
 */
export class DirtyLog {
  readonly #backend: Backend;
  readonly #slots: Pick<Planner, 'logged'>;
  readonly #pageSize: number;
  readonly #memories: Marked[] = [];

  /** `slots` knows the logged slots that KVM has now. */
  constructor(backend: Backend, slots: Pick<Planner, 'logged'>) {
    this.#backend = backend;
    this.#slots = slots;
    this.#pageSize = backend.capabilities.pageSize;
  }

  /** Takes note of memory that slots may map. */
  add(memory: HostMemory): void {
    this.#memories.push({ memory, pages: new SparseBitmap() });
    memory.onWrite = (offset, length) => this.mark(memory, offset, length);
  }

  /**
   * Moves what KVM knows of `slots`, or from rings of any slot, to here. Exact only while no vCPU runs, as for slots
   * about to go. Throws `IOCTL`; what was read before that is kept.
   */
  harvest(slots: Iterable<MemoryRange>): void {
    if (this.#backend.dirtyRings === undefined) this.#readBitmaps(slots);
    else this.drain();
  }

  /**
   * Moves what the dirty rings say to here. Entries name slots by id, so it must happen before the id of a logged slot
   * that goes away is used again. Entries of slots that aren't there, or aren't logged, are nobody's. False if that made
   * no room in a ring that KVM says is full, because the ring was overrun. Throws `IOCTL`.
   */
  drain(): boolean {
    const rings = this.#backend.dirtyRings!;
    const slots = new Map(this.#slots.logged().map((slot) => [slot.addressSpace * 0x10000 + slot.id, slot]));
    const count = rings.collect((id, page) => {
      const slot = slots.get(id);
      const offset = page * this.#pageSize;
      if (slot !== undefined && offset < slot.size) this.#markHost(slot.host + offset);
    });
    // Entries were lost, and nobody knows which.
    if (!rings.complete) this.#markWhole(slots.values());
    return count > 0 || rings.complete;
  }

  #readBitmaps(slots: Iterable<MemoryRange>): void {
    for (const slot of slots) {
      const pages = slot.size / this.#pageSize;
      const bitmap = new Uint8Array(Math.ceil(pages / 64) * 8);
      const result = this.#backend.getDirtyLog(slot.addressSpace, slot.id, pages, bitmap);
      if (result < 0) {
        const what = `reading the dirty log of slot ${slot.id} ${formatRange(slot.gpa, slot.size)}`;
        throw new MemorySlotsError('IOCTL', `${what} failed with ${errnoName(result)}; no slot was changed`);
      }
      for (const [index, bits] of bitmap.entries()) {
        for (let rest = bits; rest !== 0; rest &= rest - 1) {
          this.#markHost(slot.host + (index * 8 + 31 - Math.clz32(rest & -rest)) * this.#pageSize);
        }
      }
    }
  }

  /**
   * Marks every page of logged slots that came and went while guests ran: what KVM knew of them is gone, or, in rings,
   * mustn't be taken for the next slot's of the same id.
   */
  disown(slots: readonly MemoryRange[]): void {
    this.#markWhole(slots);
    if (slots.length > 0 && this.#backend.dirtyRings !== undefined) this.drain();
  }

  #markWhole(slots: Iterable<MemoryRange>): void {
    for (const { host, size } of slots) {
      for (let offset = 0; offset < size; offset += this.#pageSize) this.#markHost(host + offset);
    }
  }

  /** The memory that holds host address `host`. */
  memoryAt(host: number): HostMemory | undefined {
    return this.#at(host)?.memory;
  }

  /** Marks the pages that `length` bytes at `offset` of `memory` touch. */
  mark(memory: HostMemory, offset: number, length: number): void {
    const { pages } = this.#of(memory);
    const end = Math.ceil((offset + length) / this.#pageSize);
    for (let page = Math.floor(offset / this.#pageSize); page < end; page++) pages.set(page);
  }

  /** The offsets in bytes, ascending, of the pages of `memory` marked since they were last taken. Clears the marks. */
  take(memory: HostMemory): number[] {
    const pages = this.#of(memory).pages.take(0, memory.size / this.#pageSize);
    return pages.map((page) => page * this.#pageSize);
  }

  /** By host address and page by page: one slot may map memories that happen to lie next to each other. */
  #markHost(host: number): void {
    const found = this.#at(host);
    found?.pages.set((host - found.memory.hostAddress) / this.#pageSize);
  }

  #at(host: number): Marked | undefined {
    return this.#memories.find(({ memory }) => host >= memory.hostAddress && host < memory.hostAddress + memory.size);
  }

  #of(memory: HostMemory): Marked {
    const found = this.#memories.find((entry) => entry.memory === memory);
    if (found === undefined) throw new MemorySlotsError('INVALID', "this memory isn't one of this machine's");
    return found;
  }
}
