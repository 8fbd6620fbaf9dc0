import { sharedBuffer } from './simulated-memory.js';

/** Bitmaps are whole 64-bit words, as KVM's are. */
const wordBits = 64;

/** 64-bit words of a bitmap with one bit for each of `pages` pages. */
export function bitmapWords(pages: number): number {
  return Math.ceil(pages / wordBits);
}

/** Marks page `page` in the bitmap that starts at 64-bit word `at` of the shared `bits`. Any thread. */
export function markDirty(bits: Int32Array, at: number, page: number): void {
  Atomics.or(bits, at * 2 + Math.floor(page / 32), 1 << (page % 32));
}

/**
 * The dirty bitmaps of a simulated kernel, in one buffer that vCPU threads share: bitmaps are allocated when a slot
 * starts to be logged and freed when that ends. Places are counted in 64-bit words. Owner thread, but for the bits.
 */
export class DirtyBitmaps {
  readonly buffer: ArrayBufferLike;
  readonly #bits: Int32Array;
  /** Free stretches, ascending, never adjacent. */
  #free: { at: number; words: number }[];

  /** `bytes`: room for all bitmaps. */
  constructor(bytes: number) {
    this.buffer = sharedBuffer(bytes);
    this.#bits = new Int32Array(this.buffer);
    this.#free = [{ at: 0, words: Math.floor(bytes / 8) }];
  }

  /** The place of a new bitmap for `pages` pages, all of them clean or all dirty; undefined if there is no room. */
  allocate(pages: number, dirty: boolean): number | undefined {
    const words = bitmapWords(pages);
    const index = this.#free.findIndex((stretch) => stretch.words >= words);
    const stretch = this.#free[index];
    if (stretch === undefined) return undefined;
    const { at } = stretch;
    stretch.at += words;
    stretch.words -= words;
    if (stretch.words === 0) this.#free.splice(index, 1);
    this.#bits.fill(dirty ? -1 : 0, at * 2, (at + words) * 2);
    for (let page = pages; dirty && page < words * wordBits; page++) {
      Atomics.and(this.#bits, at * 2 + Math.floor(page / 32), ~(1 << (page % 32)));
    }
    return at;
  }

  free(at: number, pages: number): void {
    const words = bitmapWords(pages);
    let index = this.#free.findIndex((stretch) => stretch.at > at);
    if (index < 0) index = this.#free.length;
    this.#free.splice(index, 0, { at, words });
    for (const left of [index, index - 1]) {
      const [a, b] = [this.#free[left], this.#free[left + 1]];
      if (a === undefined || b === undefined || a.at + a.words !== b.at) continue;
      a.words += b.words;
      this.#free.splice(left + 1, 1);
    }
  }

  /** Copies the bitmap at `at` to `out`, and clears it if `clear`. A bit set meanwhile is in one or the other. */
  read(at: number, pages: number, out: Uint8Array, clear: boolean): void {
    const words = bitmapWords(pages) * 2;
    const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
    for (let i = 0; i < words; i++) {
      // Most words are 0: exchanging only the others keeps a large clean bitmap cheap.
      let value = Atomics.load(this.#bits, at * 2 + i);
      if (clear && value !== 0) value = Atomics.exchange(this.#bits, at * 2 + i, 0);
      view.setInt32(i * 4, value, true);
    }
  }

  /** Clears those of the `pages` pages from `firstPage` (a multiple of 64) that are set in `which`. */
  clear(at: number, firstPage: number, pages: number, which: Uint8Array): void {
    const view = new DataView(which.buffer, which.byteOffset, which.byteLength);
    const words = bitmapWords(pages) * 2;
    for (let i = 0; i < words; i++) {
      Atomics.and(this.#bits, at * 2 + firstPage / 32 + i, ~view.getInt32(i * 4, true));
    }
  }
}
