import type { Arena, MemoryRange } from '../core/arena.js';
import { formatRange } from '../core/checks.js';
import { errno, errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import type { MemoryListener, Section } from '../memory/address-space.js';
import { isBacked, isWritable } from '../memory/flat-view.js';
import type { SectionMap } from '../memory/section-map.js';
import type { LoggedEvent } from '../trace/format.js';
import type { Backend, HostMemory } from './backend.js';
import type { DirtyLog } from './dirty-log.js';
import type { Inhibitor } from './inhibitor.js';
import { Plan } from './plan.js';
import type { Operation, Planner, PlanSummary } from './planner.js';

/** What one commit did. Times in microseconds, sizes in bytes. */
export interface CommitRecord extends PlanSummary {
  /** The calls that were made. Read from shared memory when asked for, which only works during the notification. */
  readonly calls: () => Operation[];
  /** Counts commits that changed slots, from 1. */
  readonly number: number;
  /** Length of the inhibit window, from shutting the first gate to having opened the last; absent without one. */
  readonly windowMicroseconds?: number;
  /** Whole commit, planning included. */
  readonly microseconds: number;
}

/** A call of KVM_SET_USER_MEMORY_REGION that failed, and the commit with it. */
export class SlotIoctlError extends MemorySlotsError {
  readonly errno: number;
  readonly errnoName: string;
  readonly operation: Operation;
  /** Whether the old layout stands: every call made before the failing one was undone. */
  readonly undone: boolean;

  constructor(message: string, failed: Operation, number: number, undone: boolean) {
    super('IOCTL', message);
    this.errno = number;
    this.errnoName = errnoName(number);
    this.operation = failed;
    this.undone = undone;
  }
}

/** What is thrown through a transaction to undo it once it has been planned. */
export class Rehearsed extends Error {
  readonly plan: Plan;

  constructor(plan: Plan) {
    super('planned, and not to be done');
    this.plan = plan;
  }
}

/** How a {@link SlotsListener} goes about it. */
export interface SlotsListenerOptions {
  /** `naive`: never inhibits, as a VMM without atomic updates. For control experiments. Default `atomic`. */
  readonly updates?: 'atomic' | 'naive';
  /** Told after each commit that changed slots; must not edit the memory map. */
  readonly onCommit?: (record: CommitRecord) => void;
  /**
   * Told what KVM was asked, call by call, and of commits, windows and rollbacks, once each commit is over: what
   * formatEvent of `kvm-memslots/trace` turns into a log of QEMU's form.
   */
  readonly onEvent?: (event: LoggedEvent) => void;
}

/**
 * Turns changes of the memory map into memory slots: captures deleted and added sections, and at commit plans in C and
 * applies the plan to KVM, inside an inhibit window if the plan asks for one. Guests see the old layout or the new.
 *
 * If a call fails, those before it are undone in reverse, still inside the window; {@link commit} then throws a
 * {@link SlotIoctlError} and the listener holds the old state. Owner thread only.
 */
export class SlotsListener implements MemoryListener {
  readonly priority = 10;
  /** May be changed between commits. */
  updates: 'atomic' | 'naive';
  /** While true, commits are only planned: they throw {@link Rehearsed} and change nothing. */
  rehearsing = false;
  readonly #arena: Arena;
  readonly #backend: Backend;
  readonly #inhibitor: Inhibitor;
  readonly #planner: Planner;
  readonly #map: SectionMap;
  readonly #dirtyLog: DirtyLog;
  readonly #onCommit: ((record: CommitRecord) => void) | undefined;
  readonly #onEvent: ((event: LoggedEvent) => void) | undefined;
  readonly #events: LoggedEvent[] = [];
  #commits = 0;
  #committing = false;

  constructor(
    arena: Arena,
    backend: Backend,
    inhibitor: Inhibitor,
    planner: Planner,
    map: SectionMap,
    dirtyLog: DirtyLog,
    options: SlotsListenerOptions = {},
  ) {
    this.#arena = arena;
    this.#backend = backend;
    this.#inhibitor = inhibitor;
    this.#planner = planner;
    this.#map = map;
    this.#dirtyLog = dirtyLog;
    this.updates = options.updates ?? 'atomic';
    this.#onCommit = options.onCommit;
    this.#onEvent = options.onEvent;
  }

  begin(): void {
    this.#planner.begin();
  }

  delete(section: Section): void {
    if (section.gpa < Number.MAX_SAFE_INTEGER) this.#planner.delete(this.#range(section));
  }

  add(section: Section): void {
    if (section.gpa < Number.MAX_SAFE_INTEGER) this.#planner.add(this.#range(section));
  }

  logStart(section: Section): void {
    this.#changeLogging(section);
  }

  logStop(section: Section): void {
    this.#changeLogging(section);
  }

  #changeLogging(section: Section): void {
    const range = this.#range(section);
    range.flags |= this.#arena.layout.constants.LOGGING_ONLY;
    this.#planner.add(range);
  }

  /** Another listener refused the transaction before this one was asked: nothing of it will happen. */
  rollback(): void {
    this.#planner.begin();
  }

  /** Applies what was captured. Throws {@link SlotIoctlError}, `TIMEOUT`, `CANCELLED` or `CAPACITY`: nothing has changed then. */
  commit(): void {
    if (this.#committing) throw new MemorySlotsError('STATE', 'a commit is already under way');
    if (this.#planner.isEmpty) return;
    this.#committing = true;
    try {
      this.#commit();
    } finally {
      this.#committing = false;
    }
  }

  #commit(): void {
    try {
      this.#planAndApply();
    } finally {
      for (const event of this.#events.splice(0)) this.#onEvent?.(event);
    }
  }

  #planAndApply(): void {
    const start = performance.now();
    const plan = this.#planner.plan();
    if (this.rehearsing) throw new Rehearsed(new Plan(plan, this.#calls(plan), this.#planner.kept(plan)));
    let windowMicroseconds: number | undefined;
    if (plan.operations === 0) {
      this.#map.publish(this.#planner.captured);
      return;
    }
    this.#note({ kind: 'commit' });
    if (plan.inhibit && this.updates === 'atomic') {
      this.#note({ kind: 'window-begin' });
      try {
        windowMicroseconds = this.#inhibitor.window(() => this.#apply(plan)).microseconds;
      } finally {
        this.#note({ kind: 'window-end' });
      }
    } else {
      this.#apply(plan);
    }
    this.#commits++;
    if (this.#onCommit === undefined) return;
    const microseconds = (performance.now() - start) * 1000;
    const calls = () => this.#calls(plan);
    // Spreading the plan into a literal would take as long as all the rest of a commit.
    const record = Object.assign({ calls, number: this.#commits, microseconds }, plan);
    this.#onCommit(windowMicroseconds === undefined ? record : Object.assign(record, { windowMicroseconds }));
  }

  /** Keeps an event for when the commit is over: writing it down now would hold up vCPUs. */
  #note(event: { kind: 'commit' | 'window-begin' | 'window-end' } | { kind: 'rollback'; result: number }): void {
    if (this.#onEvent === undefined) return;
    const time = (performance.timeOrigin + performance.now()) * 1000;
    this.#events.push({ ...event, transaction: this.#commits, time, thread: undefined, line: 0 });
  }

  /** Has KVM make calls, `first` being the plan's operation with which they begin. How many succeeded. */
  #call(first: number, count: number): number {
    const planner = this.#planner;
    const before = performance.now();
    const done = this.#backend.apply(planner.operations + first * planner.operationBytes, count);
    if (this.#onEvent !== undefined) {
      const made = Math.min(done + 1, count);
      const share = (performance.now() - before) / made;
      for (let index = 0; index < made; index++) {
        const time = (performance.timeOrigin + before + share * (index + 1)) * 1000;
        this.#events.push(slotUpdate(planner.operation(first + index), planner.result(first + index), time));
      }
    }
    return done;
  }

  #calls(plan: PlanSummary): Operation[] {
    return Array.from({ length: plan.operations }, (_, index) => this.#planner.operation(index));
  }

  #apply(plan: PlanSummary): void {
    const planner = this.#planner;
    // Before anything changes: what is read stays known, whatever becomes of the calls.
    if (plan.harvests > 0) {
      const doomed = this.#calls(plan).filter(({ harvest }) => harvest);
      this.#dirtyLog.harvest(doomed.map(({ slot }) => slot));
    }
    const done = this.#call(0, plan.operations);
    if (done < plan.operations) throw this.#failure(plan, done);
    try {
      this.#map.publish(planner.captured);
    } catch (error) {
      this.#undo(plan, done);
      throw error;
    }
    planner.applied(planner.operations, done);
  }

  /**
   * Undoes the first `done` calls of a plan, last first: how many could be undone. If not all could, the slot table is
   * made to say what KVM has.
   */
  #undo(plan: PlanSummary, done: number): number {
    const planner = this.#planner;
    const created = this.#createdLogged(plan, done);
    const inverse = planner.undo(plan.operations, done);
    const undone = this.#call(plan.operations, done);
    // In a window no guest has seen these slots.
    if (!this.#inhibitor.inhibiting) this.#dirtyLog.disown(created);
    if (undone < done) {
      planner.applied(planner.operations, done);
      planner.applied(inverse, undone);
    }
    return undone;
  }

  /** The logged slots that the first `done` calls of a plan created. */
  #createdLogged(plan: PlanSummary, done: number): MemoryRange[] {
    const { LOG_DIRTY } = this.#arena.layout.constants;
    const created = this.#calls(plan)
      .slice(0, done)
      .filter(({ kind, slot }) => kind === 'create' && slot.flags & LOG_DIRTY);
    return created.map(({ slot }) => slot);
  }

  /** Call number `done` failed: makes KVM as it was before the commit, or the table as KVM is; says which. */
  #failure(plan: PlanSummary, done: number): SlotIoctlError {
    const planner = this.#planner;
    const failed = planner.operation(done);
    const number = planner.result(done);
    this.#note({ kind: 'rollback', result: number });
    const undone = this.#undo(plan, done);
    const what = `${describe(failed)} failed with ${errnoName(number)}${this.#explain(failed, number)}`;
    if (undone === done) {
      return new SlotIoctlError(
        `${what}; the calls before it were undone and the old layout stands`,
        failed,
        number,
        true,
      );
    }
    const stuck = planner.operation(plan.operations + undone);
    const why = errnoName(planner.result(plan.operations + undone));
    const rest = `${done - undone} of the ${done} calls before it could not be undone (${describe(stuck)}: ${why})`;
    return new SlotIoctlError(`${what}; ${rest}; the slot table says what KVM has now`, failed, number, false);
  }

  #explain(failed: Operation, number: number): string {
    if (number !== -errno.EEXIST) return '';
    const other = this.#planner.colliding(failed.slot);
    if (other !== undefined) return `: slot ${other.id} ${formatRange(other.gpa, other.size)} is in the way`;
    return ": a slot that isn't this machine's is in the way (the kernel keeps some: TSS, identity map, APIC page)";
  }

  /** The record of a section. Sections that no slot can back (MMIO) are captured too: look-ups find them. */
  #range(section: Section): MemoryRange {
    const { LOG_DIRTY, READONLY, BACKED, GUEST_MEMFD } = this.#arena.layout.constants;
    const { region } = section;
    const memory = isBacked(section) ? (region.memory as HostMemory) : undefined;
    let flags = 0;
    if (memory !== undefined) {
      flags = BACKED;
      if (!isWritable(section)) flags |= READONLY;
      if (section.logging) flags |= LOG_DIRTY;
      // KVM allows neither flag with a guest_memfd, and binds its pages to one slot; the same bytes are mapped at the
      // host address, too. An address space beyond the first shows, as a rule, what the first shows.
      if (flags === BACKED && memory.guestMemfd >= 0 && section.addressSpace.index === 0) flags |= GUEST_MEMFD;
    }
    const gpa = Number(section.gpa);
    return {
      gpa,
      // No slot lies above 2^53, and nobody looks anything up there.
      size: Math.max(0, Math.min(Number(section.size), Number.MAX_SAFE_INTEGER - gpa)),
      host: memory === undefined ? 0 : memory.hostAddress + region.memoryOffset + Number(section.offset),
      offset: Number(section.offset) + (flags & GUEST_MEMFD ? region.memoryOffset : 0),
      id: 0,
      flags,
      region: region.id,
      since: 0,
      addressSpace: section.addressSpace.index,
      guestMemfd: flags & GUEST_MEMFD ? memory!.guestMemfd : -1,
    };
  }
}

/** An operation as the call that KVM gets: a delete has size 0. */
function slotUpdate({ kind, slot }: Operation, result: number, time: number): LoggedEvent {
  const { addressSpace, id, flags, gpa, size, host, guestMemfd, offset } = slot;
  return {
    kind: 'slot',
    vm: '',
    addressSpace,
    slot: id,
    flags: kind === 'delete' ? 0 : flags,
    gpa,
    size: kind === 'delete' ? 0 : size,
    hostAddress: host,
    guestMemfd: guestMemfd < 0 ? undefined : { fd: guestMemfd, offset },
    result,
    time,
    thread: undefined,
    line: 0,
  };
}

function describe(operation: Operation): string {
  const { slot } = operation;
  const verb = { create: 'creating', delete: 'deleting', flags: 'changing the flags of' }[operation.kind];
  const space = slot.addressSpace === 0 ? '' : ` of address space ${slot.addressSpace}`;
  return `${verb} slot ${slot.id}${space} at ${formatRange(slot.gpa, slot.size)}`;
}
