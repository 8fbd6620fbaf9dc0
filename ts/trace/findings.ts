import { formatRange, formatSize, hex } from '../core/checks.js';
import type { Finding, Hole } from './analysis.js';
import { errnoName } from './errno.js';
import { onlyVm, type SlotUpdate } from './event.js';
import type { Layout } from './layout.js';
import type { Step } from './transactions.js';
import { Worst } from './worst.js';

/** A finding without its sentence: of many, most are never put into words. */
interface Unworded extends Omit<Finding, 'text'> {
  readonly describe: () => string;
}

const severities = ['note', 'note', 'warning', 'warning', 'error', 'error', 'error'] as const;
/** Kinds from harmless to bad; a hole during which MMIO exits were logged is one worse, a hidden one is a note. */
const ranks = {
  unchanged: 0,
  snapshot: 0,
  churn: 1,
  split: 2,
  'slot-limit': 2,
  unreadable: 3,
  contradiction: 3,
  rollback: 3,
  failure: 4,
  hole: 5,
} as const;
/** How many slots kernels allow: old ones, x86, others. */
const slotLimits = [509, 512, 32764, 32767];

/** A duration in the unit that reads best. */
export function formatMicros(micros: number): string {
  if (micros < 1000) return `${micros} µs`;
  if (micros < 1e6) return `${Number((micros / 1000).toFixed(1))} ms`;
  return `${Number((micros / 1e6).toFixed(3))} s`;
}

/** How bad it is that `size` bytes were missing for a time: bytes times microseconds. */
export function exposure(size: number, micros: number | null): number {
  return size * Math.max(micros ?? 1, 1);
}

/** Microseconds between two calls, `null` without times; 0 where strace shows the later as begun first. */
export function duration(from: SlotUpdate, to: SlotUpdate): number | null {
  return from.time === undefined || to.time === undefined ? null : Math.max(to.time - from.time, 0);
}

/** Keeps the worst of what was found, and puts it into words. */
export class Findings {
  readonly #worst: Worst<Unworded>;
  /** The time of the log's first call, from which moments are counted. */
  start: number | null = null;

  constructor(limit: number) {
    this.#worst = new Worst(limit);
  }

  get total(): number {
    return this.#worst.total;
  }

  list(): Finding[] {
    return this.#worst.list().map(({ describe, ...finding }) => ({ ...finding, text: describe() }));
  }

  hole(hole: Hole): void {
    const { transaction, deleted, size, micros, inhibited, exits } = hole;
    const rank = inhibited ? ranks.churn : ranks.hole + (exits > 0 ? 1 : 0);
    this.#add('hole', exposure(size, micros), transaction, deleted.line, () => this.#describeHole(hole), rank);
  }

  /** `layout` allows to name the slot in the way. */
  failure({ update, before, transaction }: Step, layout: Layout | undefined): void {
    const { slot, gpa, size, result } = update;
    const error = errnoName(-result);
    const other =
      error === 'EEXIST' && layout !== undefined ? [...layout].find((at) => collides(at, update)) : undefined;
    this.#add('failure', 0, transaction, update.line, () => {
      const asked = size === 0 ? 'deleting' : before === undefined ? 'creating' : 'changing';
      const what = size === 0 ? '' : ` at ${formatRange(gpa, size)}`;
      const against = other === undefined ? '' : `; slot ${other.slot} is at ${formatRange(other.gpa, other.size)}`;
      return `${this.#at(update)}${asked} slot ${slot}${what} failed with ${error}${against}`;
    });
  }

  rollback(line: number, time: number | undefined, transaction: number, result: number): void {
    this.#add('rollback', 0, null, line, () => {
      return `${this.#moment(line, time)}commit ${transaction} failed with ${errnoName(-result)} and was rolled back`;
    });
  }

  /** The same host memory was deleted at one address and created at another, or in the next transaction. */
  split(deleted: SlotUpdate, by: SlotUpdate, created: SlotUpdate, transaction: number, sameTransaction: boolean): void {
    const { gpa, size } = deleted;
    const { line, time, vm, addressSpace } = by;
    const { gpa: target } = created;
    const later = duration(by, created);
    this.#add('split', exposure(size, later), transaction, line, () => {
      const when = later === null ? 'later' : `${formatMicros(later)} later`;
      const how = sameTransaction
        ? 'moved by delete, then add: a VMM that commits each of the two by itself has it nowhere in between'
        : 'a change split over two transactions, which no atomic commit covers';
      const back = target === gpa ? 'came back there' : `came back at ${hex(target)}`;
      const where = this.#at({ line, time, vm, addressSpace });
      return `${where}${formatSize(size)} of memory left ${hex(gpa)} and ${back} ${when}: ${how}`;
    });
  }

  slotLimit(vm: string, slots: number): void {
    const limit = slotLimits.find((most) => slots <= most) ?? slotLimits.at(-1)!;
    if (slots < limit * 0.9) return;
    const left = Math.max(limit - slots, 0);
    this.#add('slot-limit', slots, null, null, () => {
      return `${this.#vm(vm)}${slots} slots were in use at once: a kernel whose limit is ${limit} has ${left} left`;
    });
  }

  churn(vm: string, recreated: number, tornDown: number, remapped: number): void {
    this.#add('churn', remapped, null, null, () => {
      const bytes = `${formatSize(tornDown)} of slots were torn down, of which ${formatSize(remapped)}`;
      const ids = `${recreated} creates took an id used before`;
      return `${this.#vm(vm)}${bytes} came back as the same memory in the same transaction; ${ids}`;
    });
  }

  unchanged(vm: string, count: number, line: number): void {
    this.#add('unchanged', count, null, line, () => {
      return `${this.#vm(vm)}${calls(count)} changed nothing (the first at line ${line})`;
    });
  }

  contradiction(vm: string, count: number, line: number): void {
    this.#add('contradiction', count, null, line, () => {
      const what = `${calls(count)} succeeded that KVM would have refused (the first at line ${line})`;
      return `${this.#vm(vm)}${what}: lines are missing, or the log begins after the VM did`;
    });
  }

  unreadable(count: number): void {
    this.#add('unreadable', count, null, null, () => {
      return `${calls(count)} of KVM_SET_USER_MEMORY_REGION or REGION2 without readable arguments or result (strace prints a pointer): those slots are missing here`;
    });
  }

  snapshot(line: number, describe: () => string): void {
    this.#add('snapshot', -line, null, line, describe);
  }

  #add(
    kind: Finding['kind'],
    weight: number,
    transaction: number | null,
    line: number | null,
    describe: () => string,
    rank: number = ranks[kind],
  ): void {
    if (!this.#worst.admits(rank, weight, line ?? 0)) return;
    this.#worst.add(rank, weight, line ?? 0, { severity: severities[rank]!, kind, transaction, line, describe });
  }

  #describeHole({ was, deleted, created, gpa, size, micros, reshape, inhibited, exits }: Hole): string {
    const long = micros === null ? '' : ` for ${formatMicros(micros)}`;
    const same = created.hostAddress - created.gpa === was.hostAddress - was.gpa;
    const memory = reshape ? 'the same memory' : same ? 'the same memory with other flags' : 'other memory';
    const seen = inhibited
      ? 'inside an inhibit window, so that no vCPU could see it'
      : exits > 0
        ? `${exits} MMIO exit${exits === 1 ? ' was' : 's were'} logged meanwhile`
        : 'a vCPU touching it would have seen an MMIO exit';
    const what = `${formatSize(size)} at ${hex(gpa)} unmapped${long} while being re-mapped to ${memory}`;
    return `${this.#at(deleted)}${what}; ${seen}`;
  }

  /** When and where a call was made. */
  #at({ line, time, vm, addressSpace }: Pick<SlotUpdate, 'line' | 'time' | 'vm' | 'addressSpace'>): string {
    const space = addressSpace === 0 ? '' : `address space ${addressSpace}: `;
    return `${this.#moment(line, time)}${this.#vm(vm)}${space}`;
  }

  #moment(line: number, time: number | undefined): string {
    if (time === undefined || this.start === null) return `line ${line}: `;
    return `at ${formatMicros(Math.max(time - this.start, 0))}: `;
  }

  /** QEMU's logs don't name their VM. */
  #vm(vm: string): string {
    return vm === onlyVm ? '' : `VM ${vm}: `;
  }
}

function calls(count: number): string {
  return count === 1 ? '1 call' : `${count} calls`;
}

function collides(slot: SlotUpdate, update: SlotUpdate): boolean {
  return (
    slot.addressSpace === update.addressSpace &&
    slot.slot !== update.slot &&
    slot.gpa < update.gpa + update.size &&
    update.gpa < slot.gpa + slot.size
  );
}
