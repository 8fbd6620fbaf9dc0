import type { SlotUpdate } from '../trace/event.js';

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

/** One transaction: `deletes` go, `adds` come, all at one instant. */
export interface RecordedStep {
  readonly deletes: readonly RecordedRange[];
  readonly adds: readonly RecordedRange[];
}

/** What a log's slot calls come to, in terms of memory that can be allocated anew. */
export interface Recording {
  /** Host memory the recorded VMM had, by extent: where it lay, and bytes. */
  readonly memories: readonly { readonly hostAddress: number; readonly size: number }[];
  readonly steps: readonly RecordedStep[];
  /** Calls that failed when they were recorded: they changed nothing, and aren't repeated. */
  readonly failures: number;
}

type Slots = Map<string, SlotUpdate>;

/** Makes a recording of the transactions of one VM. Each is a list of slot calls, in order. */
export function recordingOf(transactions: Iterable<{ readonly updates: readonly SlotUpdate[] }>): Recording {
  const slots: Slots = new Map();
  const changes: { deletes: SlotUpdate[]; adds: SlotUpdate[] }[] = [];
  const seen: SlotUpdate[] = [];
  let failures = 0;
  for (const { updates } of transactions) {
    const before = new Map(slots);
    for (const update of updates) {
      if (update.result < 0) failures++;
      else follow(slots, update, seen);
    }
    const deletes = [...before].filter(([key, slot]) => slots.get(key) !== slot).map(([, slot]) => slot);
    const adds = [...slots].filter(([key, slot]) => before.get(key) !== slot).map(([, slot]) => slot);
    changes.push({ deletes, adds });
  }
  const memories = extents(seen);
  const range = (slot: SlotUpdate): RecordedRange => {
    const memory = lastStartingAtOrBelow(memories, slot.hostAddress);
    return {
      addressSpace: slot.addressSpace,
      gpa: slot.gpa,
      size: slot.size,
      memory,
      offset: slot.hostAddress - memories[memory]!.hostAddress,
      flags: slot.flags,
    };
  };
  // One slot, one object: a step deletes the very range that an earlier one added.
  const ranges = new Map<SlotUpdate, RecordedRange>();
  const once = (slot: SlotUpdate): RecordedRange => {
    const found = ranges.get(slot) ?? range(slot);
    ranges.set(slot, found);
    return found;
  };
  const steps = changes.map(({ deletes, adds }) => ({ deletes: deletes.map(once), adds: adds.map(once) }));
  return { memories, steps, failures };
}

/** Does to `slots` what KVM did: create, delete, move, change of flags. */
function follow(slots: Slots, update: SlotUpdate, seen: SlotUpdate[]): void {
  const key = `${update.addressSpace}:${update.slot}`;
  const old = slots.get(key);
  if (update.size === 0) {
    slots.delete(key);
  } else if (old === undefined || old.gpa !== update.gpa || old.flags !== update.flags || old.size !== update.size) {
    slots.set(key, update);
    seen.push(update);
  }
}

/** The union of all host ranges, as disjoint extents by ascending address. */
function extents(slots: readonly SlotUpdate[]): { hostAddress: number; size: number }[] {
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
