import type { SlotUpdate, TraceEvent } from '../../ts/trace/index.js';

/** The most slots that KVM has on x86, and a storm of commits. */
export const bigSlots = 32_764;
export const bigCommits = 10_000;
const operations = 16;
const slotBytes = 0x10000;

/**
 * A machine with every slot in use, neighbours with gaps between some, and commits that each replace eight of them by
 * memory elsewhere: 16 calls. Times are microseconds.
 */
export function* bigTrace(slots = bigSlots, commits = bigCommits): Iterable<TraceEvent> {
  let line = 0;
  const call = (slot: number, size: number, host: number): SlotUpdate => ({
    kind: 'slot',
    line: ++line,
    time: 3 * line,
    thread: 1,
    vm: '',
    addressSpace: 0,
    slot,
    flags: slot % 7 === 0 ? 2 : 0,
    gpa: slot * slotBytes * 2 - (slot % 3) * slotBytes,
    size,
    hostAddress: host,
    guestMemfd: undefined,
    result: 0,
  });
  const hosts = Array.from({ length: slots }, (_, slot) => 0x7000_0000_0000 + slot * slotBytes * 2);
  for (let slot = 0; slot < slots; slot++) yield call(slot, slotBytes, hosts[slot]!);
  for (let commit = 0; commit < commits; commit++) {
    const touched = Array.from({ length: operations / 2 }, (_, index) => (commit * 131 + index * 4099) % slots);
    for (const slot of touched) yield call(slot, 0, hosts[slot]!);
    for (const slot of touched) {
      hosts[slot]! ^= slotBytes;
      yield call(slot, slotBytes, hosts[slot]!);
    }
  }
}
