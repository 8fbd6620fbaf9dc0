/**
 * What a trace says, whichever program wrote it.
 *
 * Every event carries the number of its line (from 1), the time its line shows, in microseconds (since the Unix epoch
 * where the log has dates, since midnight or the first line where it has only that; `undefined` without times), and
 * the number of the thread or process that its line begins with.
 */

/** Flag of a memory slot: KVM keeps a bitmap of pages written to (`KVM_MEM_LOG_DIRTY_PAGES`). */
export const LOG_DIRTY_PAGES = 1;
/** Flag of a memory slot: guest writes exit as MMIO (`KVM_MEM_READONLY`). */
export const READONLY = 2;
/** Flag of a memory slot: private memory comes from a guest_memfd (`KVM_MEM_GUEST_MEMFD`). */
export const GUEST_MEMFD = 4;

/** What the VM of a QEMU log is called: such a log has one and doesn't name it. */
export const onlyVm = 'vm';

/** The kinds of log that are read. */
export type TraceFormat = 'qemu' | 'strace' | 'mtree' | 'json';

interface At {
  readonly line: number;
  readonly time: number | undefined;
  readonly thread: number | undefined;
}

/** Memory of a guest: `size` bytes at guest-physical address `gpa`, found at `hostAddress` in the VMM. */
export interface Slot {
  /** KVM's address space: 0, or 1 for x86's system management mode. */
  readonly addressSpace: number;
  /** The slot's id inside its address space, 0 to 65,535. */
  readonly slot: number;
  /** Sum of {@link LOG_DIRTY_PAGES}, {@link READONLY}, {@link GUEST_MEMFD}. */
  readonly flags: number;
  readonly gpa: number;
  readonly size: number;
  readonly hostAddress: number;
}

/** One call of `KVM_SET_USER_MEMORY_REGION` (or `REGION2`), as recorded: size 0 asks for a delete. */
export interface SlotUpdate extends At, Slot {
  readonly kind: 'slot';
  /** Tells the virtual machines of one log apart. */
  readonly vm: string;
  /** The guest_memfd, where the call names one. */
  readonly guestMemfd: { readonly fd: number; readonly offset: number } | undefined;
  /** 0, or the negative errno of a failed call. */
  readonly result: number;
}

/** A vCPU left `KVM_RUN` (QEMU's `kvm_run_exit`); `reason` is KVM's exit reason, 6 being MMIO. */
export interface RunExit extends At {
  readonly kind: 'run-exit';
  readonly vcpu: number;
  readonly reason: number;
}

/** QEMU enlarged its own table of slots (`kvm_slots_grow`). */
export interface SlotsGrow extends At {
  readonly kind: 'slots-grow';
  readonly from: number;
  readonly to: number;
}

/** QEMU cleared dirty bits (`kvm_clear_dirty_log`): `size` pages from page `start` of the slot. */
export interface ClearDirtyLog extends At {
  readonly kind: 'clear-dirty-log';
  readonly slot: number;
  readonly start: number;
  readonly size: number;
}

/** A commit of this library begins: the slot calls up to the next such line are one transaction. */
export interface CommitBegin extends At {
  readonly kind: 'commit';
  readonly transaction: number;
}

/** This library shut the gates (`window-begin`): until `window-end` no vCPU runs. */
export interface Window extends At {
  readonly kind: 'window-begin' | 'window-end';
  readonly transaction: number;
}

/** A slot call of this library's commit failed with `-errno`: the slot calls that follow undo those before it. */
export interface Rollback extends At {
  readonly kind: 'rollback';
  readonly transaction: number;
  readonly result: number;
}

/** One range of a flat view. */
export interface FlatRange {
  readonly gpa: number;
  /** In bytes; rounded where an `i/o` range ends above 2^53. */
  readonly size: number;
  readonly type: 'i/o' | 'ram' | 'rom' | 'romd' | 'ramd';
  readonly nonVolatile: boolean;
  readonly priority: number;
  readonly name: string;
  /** Where in its region the range begins, in bytes. */
  readonly offset: number;
  /** Whether a KVM slot matches the range exactly. */
  readonly kvm: boolean;
}

/** One flat view of QEMU's `info mtree -f`, and the address spaces that have it. `line` is where it begins. */
export interface FlatViewSnapshot extends At {
  readonly kind: 'flat-view';
  /** QEMU's number of the view; 0 begins a new snapshot. */
  readonly view: number;
  readonly addressSpaces: readonly string[];
  readonly ranges: readonly FlatRange[];
}

/** Anything a trace says. */
export type TraceEvent =
  | SlotUpdate
  | RunExit
  | SlotsGrow
  | ClearDirtyLog
  | CommitBegin
  | Window
  | Rollback
  | FlatViewSnapshot;
