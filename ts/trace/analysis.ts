/** What {@link analyze} answers. Times are microseconds, sizes and addresses bytes. */
import type { Slot, SlotUpdate, TraceFormat } from './event.js';
import type { TraceCounts } from './reader.js';

/** Memory that was in use before and after a transaction, and unmapped in between. */
export interface Hole {
  /** The index of its transaction, unique in the log. */
  readonly transaction: number;
  readonly vm: string;
  readonly addressSpace: number;
  readonly gpa: number;
  readonly size: number;
  /** From the delete's time to the create's; `null` if the log has no times. */
  readonly micros: number | null;
  /** The same host memory with the same flags came back: nothing but slot boundaries changed. */
  readonly reshape: boolean;
  /** The log (one of this library's) shows that an inhibit window was open: no vCPU could see the hole. */
  readonly inhibited: boolean;
  /** MMIO exits logged while it was open, wherever they went. */
  readonly exits: number;
  /** The slot that the memory was in, the call that deleted it, and the one that brought the memory back. */
  readonly was: SlotUpdate;
  readonly deleted: SlotUpdate;
  readonly created: SlotUpdate;
}

/** One transaction in a line. */
export interface TransactionSummary {
  readonly transaction: number;
  readonly vm: string;
  readonly addressSpace: number;
  /** The line of its first call. */
  readonly line: number;
  /** The times of its first and last call. */
  readonly time: number | null;
  readonly endTime: number | null;
  readonly deletes: number;
  readonly creates: number;
  readonly moves: number;
  readonly flagChanges: number;
  /** Calls that repeated what was so already. */
  readonly unchanged: number;
  readonly failures: number;
  /** The slots that went and came, the first 64 of each (a move is in both). */
  readonly deleted: readonly Slot[];
  readonly created: readonly Slot[];
  readonly bytesTornDown: number;
  readonly holes: number;
  /** Creates with an id that an earlier slot had. */
  readonly idsReused: number;
  /** The slots in use afterwards, all address spaces of the VM together. */
  readonly slots: number;
}

/** Something that a reader of the log should know. */
export interface Finding {
  readonly severity: 'error' | 'warning' | 'note';
  readonly kind:
    | 'hole'
    | 'failure'
    | 'rollback'
    | 'split'
    | 'slot-limit'
    | 'churn'
    | 'unchanged'
    | 'contradiction'
    | 'unreadable'
    | 'snapshot';
  /** `null` where it isn't about one transaction. */
  readonly transaction: number | null;
  readonly line: number | null;
  /** One sentence. */
  readonly text: string;
}

/** What another engine would have done with the same changes. */
export interface EngineEstimate {
  readonly policy: string;
  readonly ioctls: number;
  /** Inhibit windows. */
  readonly windows: number;
  readonly bytesTornDown: number;
}

/** Stands for the engine, which this module knows nothing of. */
export interface EngineEstimator {
  /**
   * One transaction's net change of one address space, in the log's order: a slot whose range, host memory or flags
   * changed is in both lists. Each is in address order.
   */
  transaction(vm: string, addressSpace: number, deletes: readonly Slot[], creates: readonly Slot[]): void;
  /** Null if the log made no sense to it. */
  result(): EngineEstimate | null;
}

/** Follows an analysis as it goes, where lists with a limit won't do. */
export interface AnalysisObserver {
  /** A slot existed from one call to another (`until` is absent for one that was there at the end). */
  slot(slot: SlotUpdate, until: SlotUpdate | undefined): void;
  transaction(summary: TransactionSummary): void;
  hole(hole: Hole): void;
}

/** Everything about a log. */
export interface Analysis {
  readonly format: TraceFormat | null;
  readonly counts: TraceCounts;
  /** VMs with slot calls. */
  readonly vms: number;
  /** Slot calls, failed ones included. */
  readonly updates: number;
  readonly transactions: number;
  readonly failures: number;
  readonly unchanged: number;
  /** Bytes in slots that were deleted, and those of them that holes of the kind `reshape` cover. */
  readonly bytesTornDown: number;
  readonly bytesRemapped: number;
  /** The most slots in use at once after any successful call, all address spaces of a VM together. */
  readonly maxSlots: number;
  /** Snapshots of flat views. */
  readonly snapshots: number;
  /** Up to the limit, worst first (bytes times microseconds). */
  readonly holes: readonly Hole[];
  readonly totalHoles: number;
  /** Up to the limit, worst first. */
  readonly findings: readonly Finding[];
  readonly totalFindings: number;
  /** The first transactions, up to the limit. */
  readonly timeline: readonly TransactionSummary[];
  /** The time of the first call; `null` without times. */
  readonly start: number | null;
  readonly engine: EngineEstimate | null;
}
