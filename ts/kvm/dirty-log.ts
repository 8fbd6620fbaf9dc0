import type { MemoryRange } from '../core/arena.js';
import { formatRange } from '../core/checks.js';
import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import type { Backend, HostMemory } from './backend.js';

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

/**
 * Which pages of which memory were written: what KVM's dirty bitmaps said when they were last read, and what the VMM
 * wrote itself. It is kept by memory, not by slot, so it outlives slots: bits of a slot that goes away are read inside
 * the window and are here when somebody asks. Owner thread only.
 */
export class DirtyLog {
  readonly #backend: Backend;
  readonly #pageSize: number;
  readonly #memories: { readonly memory: HostMemory; readonly pages: SparseBitmap }[] = [];

  constructor(backend: Backend) {
    this.#backend = backend;
    this.#pageSize = backend.capabilities.pageSize;
  }

  /** Takes note of memory that slots may map. */
  add(memory: HostMemory): void {
    this.#memories.push({ memory, pages: new SparseBitmap() });
    memory.onWrite = (offset, length) => this.mark(memory, offset, length);
  }

  /**
   * Moves the bits of a logged slot from KVM to here. Exact only while no vCPU runs, as for a slot about to go. Throws
   * `IOCTL`.
   */
  harvest(slot: MemoryRange): void {
    const pages = slot.size / this.#pageSize;
    const bitmap = new Uint8Array(Math.ceil(pages / 64) * 8);
    const result = this.#backend.getDirtyLog(slot.addressSpace, slot.id, pages, bitmap);
    if (result < 0) {
      const what = `reading the dirty log of slot ${slot.id} ${formatRange(slot.gpa, slot.size)}`;
      throw new MemorySlotsError('IOCTL', `${what} failed with ${errnoName(result)}; no slot was changed`);
    }
    const memory = this.memoryAt(slot.host);
    if (memory === undefined) return;
    const found = this.#of(memory);
    const first = (slot.host - memory.hostAddress) / this.#pageSize;
    for (const [index, bits] of bitmap.entries()) {
      for (let rest = bits; rest !== 0; rest &= rest - 1) {
        found.pages.set(first + index * 8 + (31 - Math.clz32(rest & -rest)));
      }
    }
  }

  /** The memory that holds host address `host`. */
  memoryAt(host: number): HostMemory | undefined {
    return this.#memories.find(({ memory }) => host >= memory.hostAddress && host < memory.hostAddress + memory.size)
      ?.memory;
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

  #of(memory: HostMemory) {
    const found = this.#memories.find((entry) => entry.memory === memory);
    if (found === undefined) throw new MemorySlotsError('INVALID', "this memory isn't one of this machine's");
    return found;
  }
}
