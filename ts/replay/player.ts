import type { HostMemory } from '../kvm/backend.js';
import type { Machine } from '../kvm/machine.js';
import { MemoryRegion } from '../memory/region.js';
import type { RecordedRange, RecordedStep, Recording } from './recording.js';

/** Bits of {@link RecordedRange.flags}, as KVM has them. */
const logDirty = 1;
const readonly = 2;

/** Plays a recording on a machine: each step is one transaction of its memory map. Owner thread only. */
export class Player {
  readonly recording: Recording;
  readonly memories: readonly HostMemory[];
  /** Ranges of address spaces that the machine doesn't have: not played, and counted here. */
  skipped = 0;
  readonly #machine: Machine;
  readonly #regions = new Map<RecordedRange, MemoryRegion>();
  #next = 0;

  /** Allocates the memory that the recording needs. Throws `CAPACITY` if the backend hasn't got that much. */
  constructor(machine: Machine, recording: Recording) {
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
    if (this.#next === steps.length) {
      this.#play({ deletes: [...this.#regions.keys()], adds: steps[0]?.adds ?? [] });
      this.#next = 1;
    } else {
      this.#play(steps[this.#next]!);
      this.#next++;
    }
  }

  #play(step: RecordedStep): void {
    const [deletes, adds] = [step.deletes, step.adds].map((ranges) => ranges.filter((range) => this.#has(range)));
    this.skipped += step.adds.length - adds!.length;
    const added = new Map<RecordedRange, MemoryRegion>();
    this.#machine.transaction(() => {
      for (const range of deletes!) this.#root(range).remove(this.#regions.get(range)!);
      for (const range of adds!) added.set(range, this.#add(range));
    });
    for (const range of deletes!) this.#regions.delete(range);
    for (const [range, region] of added) this.#regions.set(range, region);
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
