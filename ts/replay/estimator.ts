import type { MemoryRange } from '../core/arena.js';
import { MemorySlotsError } from '../core/errors.js';
import { createArena } from '../core/node.js';
import { Planner, type PlanSummary, pcSplitPoints } from '../kvm/planner.js';
import type { EngineEstimate, EngineEstimator } from '../trace/analysis.js';
import { LOG_DIRTY_PAGES, READONLY, type Slot } from '../trace/event.js';

/** Slots per address space that are reckoned with, and sections per transaction: KVM's limit. */
const slots = 32_764;
const arenaBytes = 48 * 1024 * 1024;

/** What this library would have done with a recorded VMM's changes: the planner's answer, without any KVM. */
export class PlannerEstimator implements EngineEstimator {
  readonly #planners = new Map<string, Planner>();
  readonly #range: MemoryRange = {
    gpa: 0,
    size: 0,
    host: 0,
    offset: 0,
    id: 0,
    flags: 0,
    region: 0,
    since: 0,
    addressSpace: 0,
    guestMemfd: -1,
  };
  #backed = 0;
  #ioctls = 0;
  #windows = 0;
  #bytesTornDown = 0;
  /** A transaction made no sense (slots that overlap, because lines are missing): nothing can be said. */
  #lost = false;

  transaction(vm: string, addressSpace: number, deletes: readonly Slot[], creates: readonly Slot[]): void {
    const planner = this.#planners.get(vm) ?? this.#newPlanner(vm);
    if (this.#lost || addressSpace > 1) {
      this.#lost = true;
      return;
    }
    planner.begin();
    for (const slot of deletes) planner.delete(this.#section(slot, addressSpace));
    for (const slot of creates) planner.add(this.#section(slot, addressSpace));
    let plan: PlanSummary;
    try {
      plan = planner.plan();
    } catch (error) {
      if (!(error instanceof MemorySlotsError)) throw error;
      this.#lost = true;
      return;
    }
    planner.applied(planner.operations, plan.operations);
    this.#ioctls += plan.operations;
    this.#windows += plan.inhibit ? 1 : 0;
    this.#bytesTornDown += plan.bytesTornDown;
  }

  result(): EngineEstimate | null {
    if (this.#lost) return null;
    const [ioctls, windows, bytesTornDown] = [this.#ioctls, this.#windows, this.#bytesTornDown];
    return { policy: 'stable', ioctls, windows, bytesTornDown };
  }

  #newPlanner(vm: string): Planner {
    const arena = createArena(arenaBytes);
    const planner = new Planner(arena, arena.wasm, { slots, sections: slots, splitPoints: pcSplitPoints });
    this.#planners.set(vm, planner);
    this.#backed = arena.layout.constants.BACKED;
    return planner;
  }

  #section({ gpa, size, hostAddress, flags }: Slot, addressSpace: number): MemoryRange {
    const range = this.#range;
    range.gpa = gpa;
    range.size = size;
    range.host = hostAddress;
    // A guest_memfd's offsets aren't always in a log, and say nothing that the host address doesn't.
    range.flags = (flags & (LOG_DIRTY_PAGES | READONLY)) | this.#backed;
    range.addressSpace = addressSpace;
    return range;
  }
}
