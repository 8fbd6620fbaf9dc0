/** Stands for "not yet" and "none" in columns of indices. */
export const none = 0xffffffff;

/** Instead of a slot id: there is a slot, but what its id is isn't known. */
export const unnumbered = 0xffffffff;
/** Instead of a slot id: KVM has no slot for the range. */
export const noSlot = 0xfffffffe;

/** What a range is to the guest; the index in this list is what columns hold. */
export const kinds = ['ram', 'rom', 'romd', 'ramd', 'i/o'] as const;

/** What an operation did; the index in this list is what columns hold. */
export const changes = ['create', 'delete', 'move', 'flags', 'none', 'failed'] as const;

/** One address space of one virtual machine. */
export interface Space {
  readonly vm: string;
  /** KVM's number of it; 0 where it is known from snapshots. */
  readonly addressSpace: number;
  readonly name: string;
  /** Whether it is known from slot calls; otherwise from snapshots of its flat view, which tell no slot ids. */
  readonly source: 'slots' | 'snapshots';
}

/** Addresses that a transaction unmapped and mapped again: what a vCPU that ran meanwhile found missing. Bytes. */
export interface Hole {
  readonly gpa: number;
  readonly size: number;
  /** From the delete to the create, in microseconds; NaN if the log has no times. */
  readonly microseconds: number;
  /** The same host memory with the same flags came back. */
  readonly reshape: boolean;
  /** All vCPUs were held meanwhile, as the log shows. */
  readonly inhibited: boolean;
}

/** The numbers of one transaction. */
export interface TransactionFigures {
  readonly index: number;
  /** Index of the address space, undefined for a snapshot of all of them. */
  readonly space: number | undefined;
  /** Microseconds since the first event that has a time. */
  readonly time: number | undefined;
  readonly line: number;
  readonly creates: number;
  readonly deletes: number;
  readonly flagChanges: number;
  readonly failures: number;
  /** Slots in use afterwards, all address spaces of the virtual machine together. */
  readonly slots: number;
  /** Bytes of deleted slots. */
  readonly tornDown: number;
  /** The time vCPUs were held, in microseconds: 0 if it isn't known, undefined if they weren't. */
  readonly window: number | undefined;
  readonly holes: readonly Hole[];
}
