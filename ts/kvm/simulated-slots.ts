import type { Arena } from '../core/arena.js';
import { hex } from '../core/checks.js';
import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import type { BoundRange } from './simulated-files.js';

/** A slot as the kernel holds it. Sizes and addresses in bytes. */
export interface SlotState {
  readonly addressSpace: number;
  readonly id: number;
  readonly gpa: number;
  readonly size: number;
  readonly host: number;
  readonly flags: number;
  /** Into the guest_memfd; 0 without one. */
  readonly guestMemfdOffset: number;
}

/** One slot and what hangs on it. */
export interface Slot extends SlotState {
  /** Place of its dirty bitmap, undefined if it isn't logged. */
  readonly bitmap: number | undefined;
  readonly bound: BoundRange | undefined;
}

/**
 * The slots of one simulated address space: what the kernel knows, and what it has published for vCPUs to look up. The
 * two differ in the middle of calls. Owner thread only; readers use the map.
 */
export class SlotSpace {
  /** Arena offset of the map that vCPUs look slots up in. */
  readonly map: number;
  readonly #arena: Arena;
  readonly #slots = new Map<number, Slot>();
  /** Arena offset of a plain table of the same slots, in which C looks for overlaps. */
  readonly #table: number;
  /** Arena offsets of one range to remove and one to add. */
  readonly #old: number;
  readonly #new: number;
  #generation = 0;

  /** Room for `capacity` slots, with ids below that. */
  constructor(arena: Arena, capacity: number) {
    const { wasm, layout } = arena;
    this.#arena = arena;
    this.#old = arena.allocate(layout.range.bytes);
    this.#new = arena.allocate(layout.range.bytes);
    this.#table = arena.allocate(wasm.table_size(capacity));
    this.map = arena.allocate(wasm.map_size(capacity));
    wasm.table_init(this.#table, capacity);
    wasm.map_init(this.map, capacity);
  }

  /** How often what is published was changed. */
  get generation(): number {
    return this.#generation;
  }

  get(id: number): Slot | undefined {
    return this.#slots.get(id);
  }

  /** By ascending GPA. */
  list(): SlotState[] {
    const slots = [...this.#slots.values()].sort((a, b) => a.gpa - b.gpa);
    return slots.map(({ bitmap, bound, ...state }) => state);
  }

  /** Whether `state` overlaps a slot of another id. */
  overlaps(state: SlotState): boolean {
    const { wasm } = this.#arena;
    const own = this.#slots.get(state.id);
    if (own !== undefined) wasm.remove(this.#table, own.id);
    this.#write(this.#new, state);
    const found = wasm.overlap(this.#table, this.#new);
    if (own !== undefined) this.#insert(own);
    return found >= 0;
  }

  /**
   * Shows vCPUs `slot` (or nothing) in the place of `old` (or nothing), at one instant. `flags` are added to the slot's
   * own.
   */
  publish(old: Slot | undefined, slot: Slot | undefined, flags = 0): void {
    if (old !== undefined) this.#write(this.#old, old);
    if (slot !== undefined) this.#write(this.#new, slot, flags, slot.bitmap);
    const { wasm } = this.#arena;
    const result = wasm.map_apply(this.map, this.#old, old ? 1 : 0, this.#new, slot ? 1 : 0);
    if (result !== 0) {
      const shown = [old, slot].map((state) => (state === undefined ? 'nothing' : hex(state.gpa))).join(' by ');
      const message = `the simulated kernel's map refused to replace ${shown}: ${errnoName(result)}`;
      throw new MemorySlotsError('STATE', message);
    }
    this.#generation++;
  }

  /** Brings the kernel's own books up to date with what was published. */
  record(old: Slot | undefined, slot: Slot | undefined): void {
    if (old !== undefined) {
      this.#arena.wasm.remove(this.#table, old.id);
      this.#slots.delete(old.id);
    }
    if (slot !== undefined) {
      this.#insert(slot);
      this.#slots.set(slot.id, slot);
    }
  }

  #insert(slot: Slot): void {
    this.#write(this.#new, slot);
    this.#arena.wasm.insert(this.#table, this.#new);
  }

  /** Of a published slot, `region` is the place of its dirty bitmap. */
  #write(offset: number, slot: SlotState, flags = 0, bitmap = 0): void {
    this.#arena.writeRange(offset, {
      gpa: slot.gpa,
      size: slot.size,
      host: slot.host,
      offset: slot.guestMemfdOffset,
      id: slot.id,
      flags: slot.flags | flags,
      region: bitmap,
      since: 0,
      addressSpace: slot.addressSpace,
      guestMemfd: -1,
    });
  }
}
