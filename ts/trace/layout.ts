import type { Slot, SlotUpdate } from './event.js';

/**
 * What a slot call did, by KVM's rules: `none` is a repeated call, `flags` changes only flags and never leaves a hole,
 * `failed` changed nothing.
 */
export type Change = 'create' | 'delete' | 'move' | 'flags' | 'none' | 'failed';

/** A slot call and its effect on the slots known so far. */
export interface Effect {
  readonly change: Change;
  /** The slot of that id before the call, as the call that made it. */
  readonly before: SlotUpdate | undefined;
  /** The slot of that id after the call. */
  readonly after: SlotUpdate | undefined;
  /**
   * What the kernel would have refused, though the log says that it succeeded (a delete of an unknown slot, or another
   * size for an existing one): lines are missing. The layout follows the log.
   */
  readonly contradiction: boolean;
}

/** The slots of one virtual machine as its calls so far have left them. */
export class Layout {
  /**
   * Ids that are free keep their key: a map that is deleted from builds itself anew time and again, and V8 lets each of
   * its tables keep the next alive, so that half of everything survived until a full collection.
   */
  readonly #slots = new Map<number, SlotUpdate | undefined>();
  #size = 0;

  /** The number of slots in use, all address spaces together. */
  get size(): number {
    return this.#size;
  }

  /** The slots in no order, as the calls that made them. */
  *[Symbol.iterator](): Generator<SlotUpdate> {
    for (const slot of this.#slots.values()) if (slot !== undefined) yield slot;
  }

  /** The slot of an id, as the call that made it. */
  get(addressSpace: number, slot: number): SlotUpdate | undefined {
    return this.#slots.get(addressSpace * 0x10000 + slot);
  }

  /** Applies one recorded call. */
  apply(update: SlotUpdate): Effect {
    const key = update.addressSpace * 0x10000 + update.slot;
    const before = this.#slots.get(key);
    if (update.result !== 0) return { change: 'failed', before, after: before, contradiction: false };
    if (update.size === 0) {
      if (before !== undefined) {
        this.#slots.set(key, undefined);
        this.#size--;
      }
      return { change: 'delete', before, after: undefined, contradiction: before === undefined };
    }
    this.#slots.set(key, update);
    if (before === undefined) {
      this.#size++;
      return { change: 'create', before, after: update, contradiction: false };
    }
    const resized = before.size !== update.size || before.hostAddress !== update.hostAddress;
    const change = resized
      ? 'create'
      : before.gpa !== update.gpa
        ? 'move'
        : before.flags !== update.flags
          ? 'flags'
          : 'none';
    return { change, before, after: update, contradiction: resized };
  }

  /** All slots in the order of address spaces and addresses. */
  slots(): Slot[] {
    return Array.from(this, ({ addressSpace, slot, gpa, size, hostAddress, flags }) => {
      return { addressSpace, slot, gpa, size, hostAddress, flags };
    }).sort((a, b) => a.addressSpace - b.addressSpace || a.gpa - b.gpa || a.slot - b.slot);
  }

  /**
   * The slots as the guest sees them: neighbours that continue each other, in the host's memory too and with the same
   * flags, are joined. Two layouts with equal results translate every address alike.
   */
  merged(): Omit<Slot, 'slot'>[] {
    const merged: { addressSpace: number; gpa: number; size: number; hostAddress: number; flags: number }[] = [];
    for (const { slot: _, ...range } of this.slots()) {
      const last = merged.at(-1);
      if (
        last !== undefined &&
        last.addressSpace === range.addressSpace &&
        last.gpa + last.size === range.gpa &&
        last.hostAddress + last.size === range.hostAddress &&
        last.flags === range.flags
      ) {
        last.size += range.size;
      } else merged.push(range);
    }
    return merged;
  }
}
