import { formatRange, formatSize, hex } from '../core/checks.js';
import type { Finding, Hole } from './analysis.js';
import { errnoName } from './errno.js';
import { onlyVm, type SlotUpdate } from './event.js';
import type { Layout } from './layout.js';
import type { Step } from './transactions.js';
import { Worst } from './worst.js';

interface Ranked extends Finding {
  readonly rank: number;
  /** Larger is worse, among equal ranks. */
  readonly weight: number;
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
/** The numbers of slots that kernels allow: old ones, x86, others. */
const slotLimits = [509, 512, 32764, 32767];

function byRank(a: Ranked, b: Ranked): number {
  return b.rank - a.rank || b.weight - a.weight || (a.line ?? 0) - (b.line ?? 0);
}

/** A duration in the unit that reads best. */
export function formatMicros(micros: number): string {
  if (micros < 1000) return `${micros} µs`;
  if (micros < 1e6) return `${Number((micros / 1000).toFixed(1))} ms`;
  return `${Number((micros / 1e6).toFixed(3))} s`;
}

/** Bytes times microseconds: how much was missing for how long. */
export function exposure({ size, micros, inhibited }: Hole): number {
  return inhibited ? 0 : size * Math.max(micros ?? 1, 1);
}

/** Puts what was found into words, and keeps the worst of it. */
export class Findings {
  readonly #limit: number;
  readonly #worst: Worst<Ranked>;
  /** The time of the log's first call. */
  start: number | null = null;

  constructor(limit: number) {
    this.#limit = limit;
    this.#worst = new Worst(limit, byRank);
  }

  get total(): number {
    return this.#worst.total;
  }

  /** The worst, with the holes among them: these are put into words last, since most of many are dropped. */
  list(holes: readonly Hole[]): Finding[] {
    const all = new Worst(this.#limit, byRank);
    for (const finding of this.#worst.list()) all.add(finding);
    for (const hole of holes) all.add(this.#hole(hole));
    return all
      .list()
      .map(({ severity, kind, transaction, line, text }) => ({ severity, kind, transaction, line, text }));
  }

  /** `layout` allows to name the slot in the way. */
  failure({ update, before, transaction }: Step, layout: Layout | undefined): void {
    const { slot, gpa, size, result } = update;
    const asked = size === 0 ? 'deleting' : before === undefined ? 'creating' : 'changing';
    const error = errnoName(-result);
    let against = '';
    if (error === 'EEXIST' && layout !== undefined) {
      const other = [...layout].find((at) => collides(at, update));
      if (other !== undefined)
        against = `, which slot ${other.slot} overlaps with ${formatRange(other.gpa, other.size)}`;
    }
    const what = size === 0 ? '' : ` at ${formatRange(gpa, size)}${against}`;
    const text = `${this.#at(update)}${asked} slot ${slot}${what} failed with ${error}`;
    this.#add('failure', 0, transaction, update.line, text);
  }

  rollback(line: number, time: number | undefined, transaction: number, result: number): void {
    const text = `${this.#moment(line, time)}commit ${transaction} failed with ${errnoName(-result)} and was rolled back`;
    this.#add('rollback', 0, null, line, text);
  }

  /** The same host memory was deleted at one address and created at another, or in the next transaction. */
  split(deleted: SlotUpdate, by: SlotUpdate, created: SlotUpdate, transaction: number, sameTransaction: boolean): void {
    const later = duration(by, created);
    const when = later === null ? 'later' : `${formatMicros(later)} later`;
    const size = formatSize(deleted.size);
    const where = deleted.gpa === created.gpa ? `at ${hex(created.gpa)} again` : `at ${hex(created.gpa)}`;
    const how = sameTransaction
      ? 'moved by delete, then add: with a VMM that moves in two commits, no commit can make that atomic'
      : 'a change split over two transactions, which no atomic commit can cover';
    const text = `${this.#at(by)}${size} of host memory left ${hex(deleted.gpa)} and was ${where} ${when}: ${how}`;
    this.#add('split', deleted.size * Math.max(later ?? 1, 1), transaction, by.line, text);
  }

  slotLimit(vm: string, slots: number): void {
    const limit = slotLimits.find((most) => slots <= most) ?? slotLimits.at(-1)!;
    if (slots < limit * 0.9) return;
    const text = `${this.#vm(vm)}${slots} slots were in use at once: kernels whose limit is ${limit} have ${Math.max(limit - slots, 0)} left`;
    this.#add('slot-limit', slots, null, null, text);
  }

  churn(vm: string, recreated: number, tornDown: number, remapped: number): void {
    const text = `${this.#vm(vm)}${formatSize(tornDown)} of slots were torn down; ${formatSize(remapped)} of it came back as the same memory in the same transaction, and ${recreated} creates took an id used before`;
    this.#add('churn', remapped, null, null, text);
  }

  unchanged(vm: string, count: number, line: number): void {
    this.#add(
      'unchanged',
      count,
      null,
      line,
      `${this.#vm(vm)}${calls(count)} changed nothing (the first at line ${line})`,
    );
  }

  contradiction(vm: string, count: number, line: number): void {
    const text = `${this.#vm(vm)}${calls(count)} succeeded that KVM would have refused (the first at line ${line}): lines are missing, or the log begins after the VM did`;
    this.#add('contradiction', count, null, line, text);
  }

  unreadable(count: number): void {
    const text = `${calls(count)} set slots in a way that the log doesn't show (strace prints a pointer, or no result): their slots are missing here`;
    this.#add('unreadable', count, null, null, text);
  }

  snapshot(line: number, text: string): void {
    this.#add('snapshot', -line, null, line, text);
  }

  #hole(hole: Hole): Ranked {
    const { deleted, created, micros, exits } = hole;
    const long = micros === null ? '' : ` for ${formatMicros(micros)}`;
    const same = hole.reshape
      ? 'to the same memory'
      : created.hostAddress - created.gpa === deleted.hostAddress - deleted.gpa
        ? 'to the same memory with other flags'
        : 'to other memory';
    const seen = hole.inhibited
      ? 'inside an inhibit window, so that no vCPU could see it'
      : exits > 0
        ? `${exits} MMIO exit${exits === 1 ? ' was' : 's were'} logged meanwhile`
        : 'a vCPU touching it would have seen an MMIO exit';
    const text = `${this.#at(created, deleted)}${formatSize(hole.size)} at ${hex(hole.gpa)} unmapped${long} while being re-mapped ${same}; ${seen}`;
    const rank = hole.inhibited ? 1 : ranks.hole + (exits > 0 ? 1 : 0);
    return {
      severity: severities[rank]!,
      kind: 'hole',
      transaction: hole.transaction,
      line: deleted.line,
      text,
      rank,
      weight: exposure(hole),
    };
  }

  #add(kind: keyof typeof ranks, weight: number, transaction: number | null, line: number | null, text: string): void {
    const rank = ranks[kind];
    this.#worst.add({ severity: severities[rank]!, kind, transaction, line, text, rank, weight });
  }

  /** When and where a call was made. */
  #at(update: SlotUpdate, first = update): string {
    const space = update.addressSpace === 0 ? '' : `address space ${update.addressSpace}: `;
    return `${this.#moment(first.line, first.time)}${this.#vm(update.vm)}${space}`;
  }

  #moment(line: number, time: number | undefined): string {
    return time === undefined || this.start === null
      ? `line ${line}: `
      : `at ${formatMicros(Math.max(time - this.start, 0))}: `;
  }

  /** QEMU's logs don't name their VM. */
  #vm(vm: string): string {
    return vm === onlyVm ? '' : `VM ${vm}: `;
  }
}

/** Microseconds between two calls, `null` without times; 0 where strace shows the later as begun first. */
export function duration(from: SlotUpdate, to: SlotUpdate): number | null {
  return from.time === undefined || to.time === undefined ? null : Math.max(to.time - from.time, 0);
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
