import { MemorySlotsError } from '../core/errors.js';
import type { HostMemory } from '../kvm/backend.js';
import type { Machine } from '../kvm/machine.js';
import { MemoryRegion } from '../memory/region.js';
import type { RecordedRange, RecordedStep, Recording } from './recording.js';

/** Bits of {@link RecordedRange.flags}, as KVM has them. */
const logDirty = 1;
const readonly = 2;

/** What a recording needs of a machine: Machine, or one put together for a browser. */
export type ReplayMachine = Pick<Machine, 'map' | 'system' | 'smm' | 'allocate' | 'transaction'>;

/** Plays a recording on a machine: each step is one transaction of its memory map. Owner thread only. */
export class Player {
  readonly recording: Recording;
  readonly memories: readonly HostMemory[];
  /** Ranges of address spaces that the machine doesn't have: not played, and counted here. */
  skipped = 0;
  readonly #machine: ReplayMachine;
  #regions: ReadonlyMap<RecordedRange, MemoryRegion> = new Map();
  #next = 0;

  /** Allocates the memory that the recording needs. Throws `CAPACITY` if the backend hasn't got that much. */
  constructor(machine: ReplayMachine, recording: Recording) {
    this.#machine = machine;
    this.recording = recording;
    this.memories = recording.memories.map(({ size }) => machine.allocate(size));
  }

  /** Steps there are. */
  get length(): number {
    return this.recording.steps.length;
  }

  /** The step that {@link step} plays next; the number of steps at the end. */
  get position(): number {
    return this.#next;
  }

  /**
   * Plays the next step; after the last, one transaction leads back to what the first step left. If the transaction
   * fails, the error is thrown on and the position stays.
   */
  step(): void {
    const { steps } = this.recording;
    if (steps.length === 0) throw new MemorySlotsError('INVALID', 'the recording has no transactions to play');
    if (this.#next === steps.length) {
      this.#play({ deletes: [...this.#regions.keys()], adds: steps[0]?.adds ?? [], relogged: new Map() });
      this.#next = 1;
    } else {
      this.#play(steps[this.#next]!);
      this.#next++;
    }
  }

  #play(step: RecordedStep): void {
    const adds = step.adds.filter((range) => this.#has(range));
    this.skipped += step.adds.length - adds.length;
    const next = new Map(this.#regions);
    // What only changed its logging is the same region.
    const stays = new Set(step.relogged.values());
    this.#machine.transaction(() => {
      for (const range of step.deletes) {
        const region = next.get(range);
        if (region !== undefined && !stays.has(range)) this.#root(range).remove(region);
        next.delete(range);
      }
      for (const range of adds) {
        const region = this.#regions.get(step.relogged.get(range)!);
        region?.setLogging((range.flags & logDirty) !== 0);
        next.set(range, region ?? this.#add(range));
      }
    });
    this.#regions = next;
  }

  #has(range: RecordedRange): boolean {
    return range.addressSpace === 0 || this.#machine.smm !== undefined;
  }

  #root(range: RecordedRange): MemoryRegion {
    return range.addressSpace === 0 ? this.#machine.system : this.#machine.smm!.root;
  }

  /** Unmergeable, so that slots which happened to adjoin stay two sections. */
  #add(range: RecordedRange): MemoryRegion {
    const { map } = this.#machine;
    const region = MemoryRegion.ram(map, `slot at ${range.gpa}`, range.size, {
      memory: this.memories[range.memory]!,
      memoryOffset: range.offset,
      readonly: (range.flags & readonly) !== 0,
      unmergeable: true,
    });
    if (range.flags & logDirty) region.setLogging(true);
    this.#root(range).add(region, range.gpa);
    return region;
  }
}
