/**
 * What SRCU is to the kernel: vCPUs read the slots without a lock, and whoever changed them waits until everybody who
 * might still be using the old ones has finished the access it was at.
 *
 * Each vCPU has a word: bit 0 it is inside an access, bit 1 somebody sleeps until it has left. Both sides store first
 * and load second, sequentially consistently, so either the vCPU sees the new slots or the writer sees the vCPU.
 */
const inside = 1;
const awaited = 2;

/** Flags of a slot, as KVM numbers them. */
export const slotFlags = { logDirty: 1, readonly: 2, guestMemfd: 4 } as const;

/**
 * Bit of a published slot's flags: it is about to be deleted or moved. A vCPU that touches it tries again until it is
 * gone.
 */
export const invalidSlot = 0x20000;

/** How often the word is looked at before sleeping: an access takes a fraction of a microsecond. */
const spins = 400;
/** Milliseconds after which a vCPU inside is taken for dead (its worker was terminated in an access). */
const patience = 2_000;

/** A vCPU's side. `word` is an index into `words`. */
export function enterAccess(words: Int32Array, word: number): void {
  Atomics.store(words, word, inside);
}

export function leaveAccess(words: Int32Array, word: number): void {
  if (Atomics.exchange(words, word, 0) & awaited) Atomics.notify(words, word);
}

/** The writer's side: returns once nobody is inside an access that began before the call. */
export function awaitAccesses(words: Int32Array, readers: Iterable<number>): void {
  for (const word of readers) {
    for (let i = 0; i < spins && Atomics.load(words, word) & inside; i++);
    if (!(Atomics.load(words, word) & inside)) continue;
    // Leaving and coming back clears the bit, so that a wait that starts late finds another value and returns.
    if (Atomics.or(words, word, awaited) & inside) Atomics.wait(words, word, inside | awaited, patience);
  }
}
