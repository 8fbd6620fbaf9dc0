import type { Slot, Transaction } from '../trace/index.js';

/** A range of guest memory in a recording, as a slot had it. Bytes. */
export interface RecordedRange {
  readonly addressSpace: number;
  readonly gpa: number;
  readonly size: number;
  /** Which of {@link Recording.memories} it shows, and from where in it. */
  readonly memory: number;
  readonly offset: number;
  /** KVM's flags. */
  readonly flags: number;
}

/** One transaction: `deletes` go, `adds` come, all at one instant. Both in the order of the log. */
export interface RecordedStep {
  readonly deletes: readonly RecordedRange[];
  readonly adds: readonly RecordedRange[];
  /** Of the adds, those that a deleted range became by a change of flags: what they were before. */
  readonly relogged: ReadonlyMap<RecordedRange, RecordedRange>;
}

/** What a log's slot calls come to, in terms of memory that can be allocated anew. */
export interface Recording {
  /** Host memory the recorded VMM had, by extent: where it lay, and bytes. */
  readonly memories: readonly { readonly hostAddress: number; readonly size: number }[];
  readonly steps: readonly RecordedStep[];
  /** Calls that failed when they were recorded: they changed nothing, and aren't repeated. */
  readonly failures: number;
  /** Further virtual machines in the log, whose transactions aren't in here. */
  readonly otherVms: number;
}

/** Makes a recording of a log's transactions: of those of the VM that comes first. Other VMs are counted. */
export async function recordingOf(transactions: AsyncIterable<Transaction>): Promise<Recording> {
  const others = new Set<string>();
  let first: string | undefined;
  const changes: { deletes: Set<Slot>; adds: Set<Slot>; relogged: Map<Slot, Slot> }[] = [];
  const slots = new Set<Slot>();
  let failures = 0;
  for await (const { vm, steps } of transactions) {
    first ??= vm;
    if (vm !== first) {
      others.add(vm);
      continue;
    }
    const deletes = new Set<Slot>();
    const adds = new Set<Slot>();
    const relogged = new Map<Slot, Slot>();
    for (const { change, before, after } of steps) {
      if (change === 'failed') failures++;
      if (change === 'failed' || change === 'none') continue;
      // What came and went within the transaction is in neither.
      if (before !== undefined && !adds.delete(before)) {
        deletes.add(before);
        if (change === 'flags') relogged.set(after!, before);
      }
      if (after !== undefined) {
        adds.add(after);
        slots.add(after);
      }
    }
    changes.push({ deletes, adds, relogged });
  }
  const memories = extents([...slots]);
  // One slot, one object: a step deletes the very range that an earlier one added.
  const ranges = new Map([...slots].map((slot) => [slot, rangeOf(slot, memories)]));
  const ofSlots = (set: Set<Slot>) => [...set].map((slot) => ranges.get(slot)!);
  return {
    memories,
    steps: changes.map(({ deletes, adds, relogged }) => ({
      deletes: ofSlots(deletes),
      adds: ofSlots(adds),
      relogged: new Map([...relogged].map(([after, before]) => [ranges.get(after)!, ranges.get(before)!])),
    })),
    failures,
    otherVms: others.size,
  };
}

function rangeOf(slot: Slot, memories: Recording['memories']): RecordedRange {
  const { addressSpace, gpa, size, hostAddress, flags } = slot;
  const memory = lastStartingAtOrBelow(memories, hostAddress);
  return { addressSpace, gpa, size, memory, offset: hostAddress - memories[memory]!.hostAddress, flags };
}

/** The union of all host ranges, as disjoint extents by ascending address. */
function extents(slots: readonly Slot[]): { hostAddress: number; size: number }[] {
  const result: { hostAddress: number; size: number }[] = [];
  for (const { hostAddress, size } of [...slots].sort((a, b) => a.hostAddress - b.hostAddress)) {
    const last = result.at(-1);
    if (last === undefined || hostAddress > last.hostAddress + last.size) result.push({ hostAddress, size });
    else last.size = Math.max(last.size, hostAddress + size - last.hostAddress);
  }
  return result;
}

function lastStartingAtOrBelow(memories: readonly { hostAddress: number }[], address: number): number {
  let [low, high] = [0, memories.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (memories[middle]!.hostAddress <= address) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
