import { hex } from '../core/checks.js';
import type { FlatViewSnapshot, TraceEvent } from './event.js';

/** The events that a log of QEMU's form can hold. */
export type LoggedEvent = Exclude<TraceEvent, FlatViewSnapshot>;

/**
 * An event as a line of a log, without the newline: slot calls and their neighbours in the form of QEMU 9.1 and later,
 * so that tools for QEMU's logs work on ours; commits, windows and rollbacks, which QEMU has no event for, as
 * `memslots_…` lines. With a time, the line begins with `THREAD@SECONDS.MICROSECONDS:`, as QEMU's do.
 */
export function formatEvent(event: LoggedEvent): string {
  return prefix(event) + body(event);
}

function prefix({ time, thread }: LoggedEvent): string {
  if (time === undefined) return '';
  const micros = Math.floor(time);
  return `${thread ?? 0}@${Math.floor(micros / 1e6)}.${String(micros % 1e6).padStart(6, '0')}:`;
}

function body(event: LoggedEvent): string {
  switch (event.kind) {
    case 'slot': {
      const { addressSpace, slot, flags, gpa, size, hostAddress, guestMemfd, result } = event;
      const memory = `flags=${hex(flags)} gpa=${hex(gpa)} size=${hex(size)} ua=${hex(hostAddress)}`;
      const memfd = `guest_memfd=${guestMemfd?.fd ?? -1} guest_memfd_offset=${hex(guestMemfd?.offset ?? 0)}`;
      return `kvm_set_user_memory AddrSpace#${addressSpace} Slot#${slot} ${memory} ${memfd} ret=${result}`;
    }
    case 'run-exit':
      return `kvm_run_exit cpu_index ${event.vcpu}, reason ${event.reason}`;
    case 'slots-grow':
      return `kvm_slots_grow ${event.from} -> ${event.to}`;
    case 'clear-dirty-log':
      return `kvm_clear_dirty_log slot#${event.slot} start ${hex(event.start)} size ${hex(event.size)}`;
    case 'commit':
      return `memslots_commit transaction=${event.transaction}`;
    case 'window-begin':
      return `memslots_window_begin transaction=${event.transaction}`;
    case 'window-end':
      return `memslots_window_end transaction=${event.transaction}`;
    case 'rollback':
      return `memslots_rollback transaction=${event.transaction} ret=${event.result}`;
  }
}
