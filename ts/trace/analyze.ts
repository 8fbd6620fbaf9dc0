import type { Analysis, AnalysisObserver, EngineEstimator, Hole, TransactionSummary } from './analysis.js';
import type { Slot, SlotUpdate, TraceEvent } from './event.js';
import { duration, exposure, Findings } from './findings.js';
import { Missing } from './missing.js';
import type { Trace } from './reader.js';
import { Snapshots } from './snapshots.js';
import { Grouper, type Step } from './transactions.js';
import { Worst } from './worst.js';

/** KVM's exit reason for an access to memory that no slot holds. */
const exitMmio = 6;
/** Looking for the slot that a call collided with takes a walk over all: done for so many failures only. */
const mostExplained = 1000;

/** What to analyse a trace with. */
export interface AnalyzeOptions {
  /** How many holes, findings and transactions to list; 10,000 by default. */
  readonly limit?: number;
  /** What the engine would have done. */
  readonly engine?: EngineEstimator;
  readonly observer?: AnalysisObserver;
}

/** How many slots to list per transaction. */
const mostListed = 64;

/** The present transaction's summary, as it grows. */
type Open = { -readonly [Key in keyof TransactionSummary]: TransactionSummary[Key] } & {
  readonly deleted: Slot[];
  readonly created: Slot[];
};

interface Deleted {
  readonly slot: SlotUpdate;
  readonly by: SlotUpdate;
}

/** What one address space of one VM lost in its last two transactions, by host address. */
interface Lost {
  transaction: number;
  now: Map<number, Deleted>;
  before: Map<number, Deleted>;
}

/** Totals of one VM. */
interface Totals {
  slots: number;
  tornDown: number;
  remapped: number;
  recreated: number;
  unchanged: number;
  firstUnchanged: number;
  contradictions: number;
  firstContradiction: number;
  readonly ids: Set<number>;
  readonly lost: Map<number, Lost>;
}

/** Analyses events as they come; its memory doesn't grow with their number. */
export class Analyzer {
  readonly #options: AnalyzeOptions;
  readonly #limit: number;
  readonly #grouper = new Grouper();
  readonly #findings: Findings;
  readonly #holes: Worst<Hole>;
  readonly #timeline: TransactionSummary[] = [];
  readonly #snapshots = new Snapshots();
  readonly #missing = new Missing();
  readonly #totals = new Map<string, Totals>();
  /** What the present transaction touched, by slot id: as it was before and is now. For the engine only. */
  readonly #touched = new Map<number, { before: SlotUpdate | undefined; after: SlotUpdate | undefined }>();
  #open: Open | undefined;
  #updates = 0;
  #failures = 0;
  #exits = 0;
  #windows = 0;
  #inWindow = false;

  constructor(options: AnalyzeOptions = {}) {
    this.#options = options;
    this.#limit = options.limit ?? 10_000;
    this.#findings = new Findings(this.#limit);
    this.#holes = new Worst(this.#limit, (a, b) => exposure(b) - exposure(a) || a.deleted.line - b.deleted.line);
  }

  push(event: TraceEvent): void {
    const step = this.#grouper.push(event);
    if (step !== undefined) {
      this.#step(step);
      return;
    }
    switch (event.kind) {
      case 'run-exit':
        if (event.reason === exitMmio) this.#exits++;
        break;
      case 'window-begin':
        this.#windows++;
        this.#inWindow = true;
        break;
      case 'window-end':
        this.#inWindow = false;
        break;
      case 'rollback':
        this.#findings.rollback(event.line, event.time, event.transaction, event.result);
        break;
      case 'flat-view':
        this.#snapshots.push(event, this.#findings);
        break;
    }
  }

  /** What was found, when there is nothing more; `trace` tells what was read. */
  finish(trace: Pick<Trace, 'format' | 'counts'>): Analysis {
    this.#closeTransaction();
    this.#snapshots.finish(this.#findings);
    const findings = this.#findings;
    let [maxSlots, tornDown, remapped, unchanged] = [this.#snapshots.maxSlots, 0, 0, 0];
    for (const [vm, totals] of this.#totals) {
      maxSlots = Math.max(maxSlots, totals.slots);
      tornDown += totals.tornDown;
      remapped += totals.remapped;
      unchanged += totals.unchanged;
      findings.slotLimit(vm, totals.slots);
      if (totals.remapped > 0) findings.churn(vm, totals.recreated, totals.tornDown, totals.remapped);
      if (totals.unchanged > 0) findings.unchanged(vm, totals.unchanged, totals.firstUnchanged);
      if (totals.contradictions > 0) findings.contradiction(vm, totals.contradictions, totals.firstContradiction);
    }
    const { counts } = trace;
    if (counts.unreadable > 0) findings.unreadable(counts.unreadable);
    for (const layout of this.#grouper.layouts.values()) {
      for (const slot of layout) this.#options.observer?.slot(slot, undefined);
    }
    const holes = this.#holes.list();
    return {
      format: trace.format ?? null,
      counts,
      vms: this.#totals.size,
      updates: this.#updates,
      transactions: this.#grouper.transactions,
      failures: this.#failures,
      unchanged,
      bytesTornDown: tornDown,
      bytesRemapped: remapped,
      maxSlots,
      snapshots: this.#snapshots.count,
      holes,
      totalHoles: this.#holes.total,
      findings: findings.list(holes),
      totalFindings: findings.total + this.#holes.total,
      timeline: this.#timeline,
      start: findings.start,
      engine: this.#options.engine?.result() ?? null,
    };
  }

  #step(step: Step): void {
    const { update, before } = step;
    this.#updates++;
    this.#findings.start ??= update.time ?? null;
    let open = this.#open;
    if (open === undefined || open.transaction !== step.transaction) open = this.#openTransaction(step);
    open.endTime = update.time ?? null;
    const totals = this.#totalsOf(update.vm);
    if (step.contradiction && totals.contradictions++ === 0) totals.firstContradiction = update.line;
    switch (step.change) {
      case 'failed':
        open.failures++;
        if (this.#failures++ < mostExplained) this.#findings.failure(step, this.#grouper.layouts.get(update.vm)!);
        else this.#findings.failure(step, undefined);
        return;
      case 'none':
        open.unchanged++;
        if (totals.unchanged++ === 0) totals.firstUnchanged = update.line;
        return;
      case 'flags':
        open.flagChanges++;
        break;
      case 'delete':
        open.deletes++;
        if (before !== undefined) this.#deleted(before, update, open, totals);
        break;
      case 'move':
        open.moves++;
        this.#deleted(before!, update, open, totals);
        this.#created(step, open, totals);
        break;
      case 'create':
        open.creates++;
        this.#created(step, open, totals);
        break;
    }
    // A transaction that began with failed calls is that of the first call to succeed.
    open.vm = update.vm;
    open.addressSpace = update.addressSpace;
    open.slots = step.slots;
    if (step.slots > totals.slots) totals.slots = step.slots;
    if (before !== undefined) this.#options.observer?.slot(before, update);
    if (this.#options.engine !== undefined) {
      const touched = this.#touched.get(update.slot);
      if (touched === undefined) this.#touched.set(update.slot, { before, after: step.after });
      else touched.after = step.after;
    }
  }

  #deleted(slot: SlotUpdate, by: SlotUpdate, open: Open, totals: Totals): void {
    if (open.deleted.length < mostListed) open.deleted.push(slot);
    open.bytesTornDown += slot.size;
    totals.tornDown += slot.size;
    const window = this.#inWindow ? this.#windows : 0;
    this.#missing.add({ gpa: slot.gpa, end: slot.gpa + slot.size, slot, by, exits: this.#exits, window });
    this.#lostOf(totals, slot.addressSpace, open.transaction).now.set(slot.hostAddress, { slot, by });
  }

  #created({ update, before, change }: Step, open: Open, totals: Totals): void {
    const { addressSpace, gpa, size, hostAddress } = update;
    if (open.created.length < mostListed) open.created.push(update);
    if (change === 'create') {
      const id = addressSpace * 0x10000 + update.slot;
      if (before !== undefined || totals.ids.has(id)) {
        open.idsReused++;
        totals.recreated++;
      } else totals.ids.add(id);
    }
    for (const gone of this.#missing.take(gpa, gpa + size)) {
      const { slot, by } = gone;
      const hole: Hole = {
        transaction: open.transaction,
        vm: update.vm,
        addressSpace,
        gpa: gone.gpa,
        size: gone.end - gone.gpa,
        micros: duration(by, update),
        reshape: hostAddress - gpa === slot.hostAddress - slot.gpa && update.flags === slot.flags,
        inhibited: gone.window !== 0 && gone.window === this.#windows && this.#inWindow,
        exits: this.#exits - gone.exits,
        deleted: by,
        created: update,
      };
      open.holes++;
      if (hole.reshape) totals.remapped += hole.size;
      this.#holes.add(hole);
      this.#options.observer?.hole(hole);
    }
    if (change === 'create') this.#findSplit(update, open, totals);
  }

  /** Whether the memory of a new slot was deleted elsewhere in this transaction, or anywhere in the one before. */
  #findSplit(update: SlotUpdate, open: Open, totals: Totals): void {
    const { now, before } = this.#lostOf(totals, update.addressSpace, open.transaction);
    const here = now.get(update.hostAddress);
    if (here !== undefined) {
      now.delete(update.hostAddress);
      // A log that marks its commits shows that this is one.
      if (here.slot.size !== update.size || here.slot.gpa === update.gpa || this.#grouper.marked) return;
      this.#findings.split(here.slot, here.by, update, open.transaction, true);
      return;
    }
    const earlier = before.get(update.hostAddress);
    if (earlier === undefined || earlier.slot.size !== update.size) return;
    before.delete(update.hostAddress);
    this.#findings.split(earlier.slot, earlier.by, update, open.transaction, false);
  }

  #lostOf(totals: Totals, addressSpace: number, transaction: number): Lost {
    let lost = totals.lost.get(addressSpace);
    if (lost === undefined) {
      lost = { transaction, now: new Map(), before: new Map() };
      totals.lost.set(addressSpace, lost);
    } else if (lost.transaction !== transaction) {
      lost.before.clear();
      [lost.now, lost.before] = [lost.before, lost.now];
      lost.transaction = transaction;
    }
    return lost;
  }

  #totalsOf(vm: string): Totals {
    let totals = this.#totals.get(vm);
    if (totals === undefined) {
      totals = {
        slots: 0,
        tornDown: 0,
        remapped: 0,
        recreated: 0,
        unchanged: 0,
        firstUnchanged: 0,
        contradictions: 0,
        firstContradiction: 0,
        ids: new Set(),
        lost: new Map(),
      };
      this.#totals.set(vm, totals);
    }
    return totals;
  }

  #openTransaction({ update, transaction, slots }: Step): Open {
    this.#closeTransaction();
    this.#missing.clear();
    const time = update.time ?? null;
    this.#open = {
      transaction,
      vm: update.vm,
      addressSpace: update.addressSpace,
      line: update.line,
      time,
      endTime: time,
      deletes: 0,
      creates: 0,
      moves: 0,
      flagChanges: 0,
      unchanged: 0,
      failures: 0,
      deleted: [],
      created: [],
      bytesTornDown: 0,
      holes: 0,
      idsReused: 0,
      slots,
    };
    return this.#open;
  }

  #closeTransaction(): void {
    const open = this.#open;
    if (open === undefined) return;
    if (this.#timeline.length < this.#limit) this.#timeline.push(open);
    this.#options.observer?.transaction(open);
    if (this.#options.engine !== undefined) this.#tellEngine(this.#options.engine, open);
  }

  #tellEngine(engine: EngineEstimator, { vm, addressSpace }: Open): void {
    const deletes: Slot[] = [];
    const creates: Slot[] = [];
    for (const { before, after } of this.#touched.values()) {
      if (before !== undefined && after !== undefined && same(before, after)) continue;
      if (before !== undefined) deletes.push(before);
      if (after !== undefined) creates.push(after);
    }
    this.#touched.clear();
    const byAddress = (a: Slot, b: Slot) => a.gpa - b.gpa;
    engine.transaction(vm, addressSpace, deletes.sort(byAddress), creates.sort(byAddress));
  }
}

function same(a: Slot, b: Slot): boolean {
  return a.gpa === b.gpa && a.size === b.size && a.hostAddress === b.hostAddress && a.flags === b.flags;
}

/**
 * Reads a trace to its end and says what its guests could have seen: the holes, and all else worth knowing.
 *
 * ```ts
 * const { holes } = await analyze(readTrace(file.stream()));
 * ```
 */
export async function analyze(trace: Trace, options: AnalyzeOptions = {}): Promise<Analysis> {
  const analyzer = new Analyzer(options);
  for await (const batch of trace.batches()) {
    for (const event of batch) analyzer.push(event);
  }
  return analyzer.finish(trace);
}
