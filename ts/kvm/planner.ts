import type { Arena, MemoryRange } from '../core/arena.js';
import { formatRange, mustBeAligned } from '../core/checks.js';
import { type Core, errno, errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import type { SectionChanges } from '../memory/section-map.js';

/** `exact`: slots mirror sections, as in QEMU. `stable`: a slot stays as long as its translations do. */
export type Policy = 'exact' | 'stable';

/** How plans are to be made. */
export interface PlannerOptions {
  readonly policy?: Policy;
  /** Slots that an address space may hold. */
  readonly slots: number;
  /** Bytes; slots start and end at multiples of it. Default 4,096. */
  readonly pageSize?: number;
  /** Bytes; larger sections become several slots. Default (2^31 − 1) pages, KVM's limit. */
  readonly largestSlot?: number;
  /** Guest-physical addresses at which `stable` cuts new slots, because firmware reshapes memory there. Default none. */
  readonly splitPoints?: readonly number[];
  /** Dirty bits of slots that go away aren't wanted: no window is taken to harvest them. */
  readonly discardDirty?: boolean;
  /** Sections that one transaction may delete, and add. Default 65,536. */
  readonly sections?: number;
}

/** What a PC's firmware reshapes: VGA memory, option ROMs, the BIOS area, and the end of it all. */
export const pcSplitPoints: readonly number[] = [0xa0000, 0xc0000, 0xe0000, 0xf0000, 0x100000];

export type OperationKind = 'create' | 'delete' | 'flags';
export type OperationReason = 'added' | 'remainder' | 'gone' | 'changed' | 'merged' | 'logging';

/** One call of KVM_SET_USER_MEMORY_REGION. */
export interface Operation {
  readonly kind: OperationKind;
  readonly reason: OperationReason;
  /** The slot as it will be (create, flags) or as it was (delete). */
  readonly slot: MemoryRange;
  /** Flags before the call. */
  readonly oldFlags: number;
  /** The slot's dirty bitmap has to be read first, inside the window. */
  readonly harvest: boolean;
}

/** A plan's figures. Bytes and counts are over all address spaces. */
export interface PlanSummary {
  readonly operations: number;
  /** vCPUs must be kept out while the operations run. */
  readonly inhibit: boolean;
  /** Some address mapped before and after is unmapped in between. */
  readonly overlap: boolean;
  readonly harvests: number;
  readonly creates: number;
  readonly deletes: number;
  readonly flagChanges: number;
  /** Slots that the change touched and that stay. */
  readonly kept: number;
  /** Slots torn down only to be merged, because slots ran short. */
  readonly merged: number;
  readonly bytesTornDown: number;
  /** Bytes torn down to be mapped again to the same host memory with the same flags. */
  readonly bytesRemapped: number;
}

const addressSpaces = 2;

/**
 * The slot tables of a machine, and plans to change them: the TypeScript face of csrc/plan.c. Holds what KVM has, once
 * told by {@link applied}. Owner thread only.
 */
export class Planner {
  readonly core: Core;
  /** Arena offset of the operations of the last plan. */
  readonly operations: number;
  readonly operationBytes: number;
  readonly #arena: Arena;
  readonly #tables: readonly number[];
  readonly #tablesOffset: number;
  readonly #request: number;
  readonly #plan: number;
  readonly #deletes: number;
  readonly #adds: number;
  readonly #splitPoints: number;
  readonly #scratch: number;
  readonly #sections: number;
  readonly #operationCapacity: number;
  readonly #slots: number;
  #deleteCount = 0;
  #addCount = 0;
  /** How many of them are of address space 0; they come first. */
  #normalDeletes = 0;
  #normalAdds = 0;

  constructor(arena: Arena, core: Core, options: PlannerOptions) {
    this.#arena = arena;
    this.core = core;
    const { range, request, plan, operation, constants } = arena.layout;
    this.#sections = options.sections ?? 65_536;
    this.#slots = options.slots;
    const pageSize = options.pageSize ?? 4096;
    const splitPoints = options.splitPoints ?? [];
    for (const point of splitPoints) mustBeAligned('a split point', point, pageSize);

    const tableBytes = core.table_size(options.slots);
    this.#tables = Array.from({ length: addressSpaces }, () => arena.allocate(tableBytes));
    for (const table of this.#tables) core.table_init(table, options.slots);
    this.#tablesOffset = arena.allocate(addressSpaces * 4);
    for (const [index, table] of this.#tables.entries()) arena.setU32(this.#tablesOffset + index * 4, table);
    this.#deletes = arena.allocate(this.#sections * range.bytes);
    this.#adds = arena.allocate(this.#sections * range.bytes);
    // A commit never needs more calls than this twice over, once to do and once to undo.
    this.#operationCapacity = 2 * addressSpaces * options.slots;
    this.operationBytes = operation.bytes;
    this.operations = arena.allocate(2 * this.#operationCapacity * operation.bytes + options.slots * range.bytes);
    this.#scratch = arena.allocate(Math.ceil(options.slots / 256) * addressSpaces * range.bytes + range.bytes);
    this.#splitPoints = arena.allocate(Math.max(1, splitPoints.length) * 8);
    for (const [index, point] of [...splitPoints].sort((a, b) => a - b).entries()) {
      arena.setU64(this.#splitPoints + index * 8, point);
    }
    this.#plan = arena.allocate(plan.bytes);
    this.#request = arena.allocate(request.bytes);
    const set = (field: number, value: number) => arena.setU32(this.#request + field, value);
    set(request.policy, options.policy === 'exact' ? constants.POLICY_EXACT : constants.POLICY_STABLE);
    set(request.page_size, pageSize);
    arena.setU64(this.#request + request.largest_slot, options.largestSlot ?? (2 ** 31 - 1) * pageSize);
    set(request.slot_limit, options.slots);
    set(request.discard_dirty, options.discardDirty ? 1 : 0);
    set(request.split_count, splitPoints.length);
    set(request.operation_capacity, this.#operationCapacity);
    set(request.scratch_capacity, Math.ceil(options.slots / 256) * addressSpaces + 1);
  }

  /** Forgets the sections of the transaction before. */
  begin(): void {
    this.#deleteCount = 0;
    this.#addCount = 0;
    this.#normalDeletes = 0;
    this.#normalAdds = 0;
  }

  /** Captures a deleted section. Sections come by ascending address space and address. */
  delete(section: MemoryRange): void {
    this.#deleteCount = this.#capture(this.#deletes, this.#deleteCount, section);
    if (section.addressSpace === 0) this.#normalDeletes = this.#deleteCount;
  }

  /** Captures an added section, which replaces whatever was at its addresses. */
  add(section: MemoryRange): void {
    this.#addCount = this.#capture(this.#adds, this.#addCount, section);
    if (section.addressSpace === 0) this.#normalAdds = this.#addCount;
  }

  #capture(list: number, count: number, section: MemoryRange): number {
    if (count === this.#sections) {
      const limit = `a transaction may change at most ${this.#sections} sections`;
      throw new MemorySlotsError('CAPACITY', `${limit}; ${formatRange(section.gpa, section.size)} is one too many`);
    }
    this.#arena.writeRange(list + count * this.#arena.layout.range.bytes, section);
    return count + 1;
  }

  get isEmpty(): boolean {
    return this.#deleteCount + this.#addCount === 0;
  }

  /**
   * Plans the captured transaction; {@link operation} then reads the plan's calls. Changes no table. Throws `CAPACITY`
   * if the map needs more slots than there are, and `INVALID` for sections that don't ascend or overlap each other.
   */
  plan(): PlanSummary {
    const { request, plan } = this.#arena.layout;
    this.#arena.setU32(this.#request + request.delete_count, this.#deleteCount);
    this.#arena.setU32(this.#request + request.add_count, this.#addCount);
    const result = this.core.plan(
      this.#request,
      0,
      this.#tablesOffset,
      this.#deletes,
      this.#adds,
      this.#splitPoints,
      this.#plan,
      this.operations,
      this.#scratch,
    );
    const figure = (field: number) => this.#arena.u32(this.#plan + field);
    if (result === -errno.ENOSPC) {
      const asked = `the map of address space ${figure(plan.full_address_space)} needs ${figure(plan.needed)} slots`;
      throw new MemorySlotsError('CAPACITY', `${asked} even when neighbours are merged, and there are ${this.#slots}`);
    }
    if (result === -errno.EINVAL) {
      throw new MemorySlotsError('INVALID', 'the sections of a transaction must ascend and not overlap each other');
    }
    if (result < 0) throw new MemorySlotsError('CAPACITY', `the plan takes too many operations: ${errnoName(result)}`);
    return {
      operations: figure(plan.operation_count),
      inhibit: figure(plan.inhibit) !== 0,
      overlap: figure(plan.overlap) !== 0,
      harvests: figure(plan.harvest),
      creates: figure(plan.creates),
      deletes: figure(plan.deletes),
      flagChanges: figure(plan.flag_changes),
      kept: figure(plan.kept),
      merged: figure(plan.merged),
      bytesTornDown: this.#arena.u64(this.#plan + plan.bytes_torn_down),
      bytesRemapped: this.#arena.u64(this.#plan + plan.bytes_remapped),
    };
  }

  /** Operation `index` of the last plan, or, after {@link undo}, of what follows it. */
  operation(index: number): Operation {
    const { operation } = this.#arena.layout;
    const at = this.operations + index * operation.bytes;
    return {
      kind: this.#kindName(this.#arena.u32(at + operation.kind)),
      reason: this.#reasonName(this.#arena.u32(at + operation.reason)),
      slot: this.#arena.readRange(at + operation.slot),
      oldFlags: this.#arena.u32(at + operation.old_flags),
      harvest: this.#arena.u32(at + operation.harvest) !== 0,
    };
  }

  /** The slots that the captured transaction touches, by address space and address: what the last plan didn't delete. */
  kept(plan: PlanSummary): MemoryRange[] {
    const deleted = new Set<string>();
    for (let index = 0; index < plan.operations; index++) {
      const { kind, slot } = this.operation(index);
      if (kind !== 'create') deleted.add(`${slot.addressSpace}:${slot.id}`);
    }
    const { range } = this.#arena.layout;
    const captured = (list: number, count: number) =>
      Array.from({ length: count }, (_, index) => this.#arena.readRange(list + index * range.bytes));
    const sections = [...captured(this.#deletes, this.#deleteCount), ...captured(this.#adds, this.#addCount)];
    const touched = (slot: MemoryRange) =>
      sections.some(
        ({ addressSpace, gpa, size }) =>
          addressSpace === slot.addressSpace && gpa < slot.gpa + slot.size && slot.gpa < gpa + size,
      );
    return this.#tables
      .flatMap((_, addressSpace) => this.list(addressSpace))
      .filter((slot) => touched(slot) && !deleted.has(`${slot.addressSpace}:${slot.id}`));
  }

  /** What the call of operation `index` returned: 0 or a negative errno. */
  result(index: number): number {
    return this.#arena.words[
      (this.operations + index * this.operationBytes + this.#arena.layout.operation.result) >>> 2
    ]!;
  }

  /**
   * Writes the inverse of the first `done` operations, last first, behind the plan's `count`: the arena offset. Their
   * number is `done` too.
   */
  undo(count: number, done: number): number {
    const { operation, range, constants } = this.#arena.layout;
    const inverse = { [constants.CREATE]: constants.DELETE, [constants.DELETE]: constants.CREATE };
    for (let index = 0; index < done; index++) {
      const from = this.operations + (done - 1 - index) * operation.bytes;
      const to = this.operations + (count + index) * operation.bytes;
      this.#arena.octets.copyWithin(to, from, from + operation.bytes);
      const kind = this.#arena.u32(from + operation.kind);
      this.#arena.setU32(to + operation.kind, inverse[kind] ?? kind);
      if (kind === constants.FLAGS) {
        const flags = to + operation.slot + range.flags;
        this.#arena.setU32(to + operation.old_flags, this.#arena.u32(flags));
        this.#arena.setU32(flags, this.#arena.u32(from + operation.old_flags));
      }
    }
    return this.operations + count * operation.bytes;
  }

  /** Tells the tables that KVM has accepted `count` operations at arena offset `operations`. */
  applied(operations: number, count: number): void {
    this.core.apply(0, this.#tablesOffset, operations, count);
  }

  /** What was captured of address space 0, where it lies. */
  get captured(): SectionChanges {
    const [deleteCount, addCount] = [this.#normalDeletes, this.#normalAdds];
    return { deletes: this.#deletes, deleteCount, adds: this.#adds, addCount };
  }

  /** Slots in use, in address space `addressSpace` or in all. */
  count(addressSpace?: number): number {
    const count = (table: number) => this.#arena.u32(table + this.#arena.layout.table.count);
    if (addressSpace !== undefined) return count(this.#tables[addressSpace]!);
    return this.#tables.reduce((sum, table) => sum + count(table), 0);
  }

  /** All slots of an address space, by ascending address. */
  list(addressSpace: number): MemoryRange[] {
    const { range } = this.#arena.layout;
    // Behind the operations and their inverses is room for a table.
    const room = this.operations + 2 * this.#operationCapacity * this.operationBytes;
    const count = this.core.list(this.#tables[addressSpace]!, room);
    return Array.from({ length: count }, (_, index) => ({
      ...this.#arena.readRange(room + index * range.bytes),
      addressSpace,
    }));
  }

  /** All slots whose dirty pages KVM logs. */
  logged(): MemoryRange[] {
    const { LOG_DIRTY } = this.#arena.layout.constants;
    return this.#tables.flatMap((_, addressSpace) => this.list(addressSpace)).filter(({ flags }) => flags & LOG_DIRTY);
  }

  /** The plan of a transaction that changes nothing. */
  nothing(): PlanSummary {
    this.begin();
    return this.plan();
  }

  /** The slot that collides with `range`, the lowest such, if any of this table's does. */
  colliding(range: MemoryRange): MemoryRange | undefined {
    const end = range.gpa + range.size;
    return this.list(range.addressSpace).find((slot) => slot.gpa < end && slot.gpa + slot.size > range.gpa);
  }

  #kindName(kind: number): OperationKind {
    const { CREATE, DELETE } = this.#arena.layout.constants;
    return kind === CREATE ? 'create' : kind === DELETE ? 'delete' : 'flags';
  }

  #reasonName(reason: number): OperationReason {
    const { constants } = this.#arena.layout;
    const names: Record<number, OperationReason> = {
      [constants.REASON_ADDED]: 'added',
      [constants.REASON_REMAINDER]: 'remainder',
      [constants.REASON_GONE]: 'gone',
      [constants.REASON_CHANGED]: 'changed',
      [constants.REASON_MERGED]: 'merged',
    };
    return names[reason] ?? 'logging';
  }
}
