import type { MemoryRange } from '../core/arena.js';
import { formatRange, formatSize, hex } from '../core/checks.js';
import type { Operation, OperationReason, PlanSummary } from './planner.js';

const reasons: Record<OperationReason, string> = {
  added: 'a new section',
  remainder: 'what stays of a slot that had to go',
  gone: 'nothing of it is mapped any more',
  changed: 'some of it changes',
  merged: 'merged with its neighbours: slots run short',
  logging: 'only its dirty logging changes',
};

/** What a transaction would do to KVM's slots. Nothing has been done. Made by Machine.plan. */
export class Plan implements PlanSummary {
  readonly inhibit: boolean;
  readonly overlap: boolean;
  readonly harvests: number;
  readonly creates: number;
  readonly deletes: number;
  readonly flagChanges: number;
  readonly kept: number;
  readonly merged: number;
  readonly bytesTornDown: number;
  readonly bytesRemapped: number;
  readonly operations: number;
  /** The calls, in the order in which they would be made. */
  readonly calls: readonly Operation[];
  /** Slots that the transaction touches and that stay: their translation is the same. */
  readonly keptSlots: readonly MemoryRange[];

  constructor(summary: PlanSummary, calls: readonly Operation[], keptSlots: readonly MemoryRange[]) {
    this.inhibit = summary.inhibit;
    this.overlap = summary.overlap;
    this.harvests = summary.harvests;
    this.creates = summary.creates;
    this.deletes = summary.deletes;
    this.flagChanges = summary.flagChanges;
    this.kept = summary.kept;
    this.merged = summary.merged;
    this.bytesTornDown = summary.bytesTornDown;
    this.bytesRemapped = summary.bytesRemapped;
    this.operations = summary.operations;
    this.calls = calls;
    this.keptSlots = keptSlots;
  }

  /** Why vCPUs would be kept out, or why not. */
  get window(): string {
    if (!this.inhibit) return 'no window: no address that stays mapped is missing in between';
    const why = [
      ...(this.overlap ? ['addresses that stay mapped are missing in between'] : []),
      ...(this.harvests > 0 ? [`the dirty bits of ${this.harvests} slots have to be read`] : []),
    ];
    return `in a window: ${why.join(', and ')}`;
  }

  /** A table for people: one line a call and one for each kept slot, then the window and the cost. */
  toString(): string {
    const line = (verb: string, slot: MemoryRange, reason: string) => {
      const where = `${slot.addressSpace}:${slot.id}`.padStart(7);
      return `${verb.padEnd(6)} ${where}  ${formatRange(slot.gpa, slot.size).padEnd(44)} ${flagNames(slot.flags).padEnd(4)} ${reason}`;
    };
    return [
      ...this.calls.map(({ kind, slot, reason }) => line(kind, slot, reasons[reason])),
      ...this.keptSlots.map((slot) => line('keep', slot, 'kept: same translation')),
      `${this.window}; ${formatSize(this.bytesTornDown)} torn down, ${formatSize(this.bytesRemapped)} of it for nothing`,
    ].join('\n');
  }
}

function flagNames(flags: number): string {
  const names = [flags & 2 ? 'r' : 'rw', flags & 1 ? 'd' : '', flags & 4 ? 'm' : ''].join('');
  return flags & ~7 ? hex(flags) : names;
}
