import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';

/** Told of a page that a guest wrote: slot id with the address space above bit 16, and page within the slot. */
export type DirtyPageVisitor = (slot: number, page: number) => void;

/** Dirty rings as {@link Backend} offers them. */
export interface DirtyRings {
  /** False once a ring was overrun: from then on entries may be missing, and KVM may find a ring full that is empty. */
  readonly complete: boolean;
  /**
   * Takes all entries out of all rings and has KVM log their pages again: how many there were. Misses what processors
   * keep to themselves for vCPUs that are in KVM_RUN. Throws `IOCTL`, with the entries taken.
   */
  collect(visit: DirtyPageVisitor): number;
}

/** What {@link LinuxDirtyRings} needs of the native library and the VM. Addresses are native. */
export interface RingCalls {
  /** memslots_kvm_ring_collect. */
  collect(ring: number, entries: number, next: Uint32Array, out: Uint32Array): number;
  /** KVM_RESET_DIRTY_RINGS: how many entries KVM took back, or a negative errno. */
  reset(): number;
  map(vcpu: number, bytes: number): number;
  unmap(address: number, bytes: number): void;
}

/** Entries of each ring. Rings are drained at the latest when they are nearly full, so more would only save exits. */
const entryCount = 4096;
/** Bytes of one: flags, slot, page within the slot. */
const entryBytes = 16;
/** A signal that is on its way makes KVM_RESET_DIRTY_RINGS return early; not this often in a row. */
const resetAttempts = 16;

interface Ring {
  readonly address: number;
  /** One word: the entry to be taken next. Counts on for ever. */
  readonly next: Uint32Array;
}

/**
 * The dirty rings of a real KVM's vCPUs: each vCPU pushes a record of every page that it makes dirty onto a ring of its
 * own (linux/kvm.h, struct kvm_dirty_gfn). Owner thread only.
 *
 * A vCPU that runs natively leaves KVM_RUN before its ring is full. KVM's instruction emulator may not, and then
 * overwrites entries. That shows: every entry of the ring is taken, or entries that were taken aren't given back.
 */
export class LinuxDirtyRings implements DirtyRings {
  /** Bytes of a ring: what KVM_CAP_DIRTY_LOG_RING is to be enabled with. */
  static readonly bytes = entryCount * entryBytes;
  readonly #calls: RingCalls;
  readonly #rings: Ring[] = [];
  readonly #taken = new Uint32Array(2 * entryCount);
  #complete = true;

  constructor(calls: RingCalls) {
    this.#calls = calls;
  }

  /** Maps the ring of a new vCPU, whose file descriptor `vcpu` is. */
  add(vcpu: number): void {
    const address = this.#calls.map(vcpu, LinuxDirtyRings.bytes);
    this.#rings.push({ address, next: new Uint32Array(1) });
  }

  get complete(): boolean {
    return this.#complete;
  }

  collect(visit: DirtyPageVisitor): number {
    let total = 0;
    for (const { address, next } of this.#rings) {
      const count = this.#calls.collect(address, entryCount, next, this.#taken);
      for (let entry = 0; entry < count; entry++) visit(this.#taken[2 * entry]!, this.#taken[2 * entry + 1]!);
      if (count === entryCount) this.#complete = false;
      total += count;
    }
    this.#reset(total);
    return total;
  }

  #reset(total: number): void {
    let left = total;
    for (let attempt = 0; attempt < resetAttempts && left > 0; attempt++) {
      const done = this.#calls.reset();
      if (done < 0) throw new MemorySlotsError('IOCTL', `KVM_RESET_DIRTY_RINGS failed with ${errnoName(done)}`);
      left -= done;
    }
    if (left > 0) this.#complete = false;
  }

  /** Unmaps all rings. vCPUs must not run. */
  close(): void {
    for (const { address } of this.#rings.splice(0)) this.#calls.unmap(address, LinuxDirtyRings.bytes);
  }
}
