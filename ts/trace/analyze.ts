import type { Analysis, AnalysisObserver, EngineEstimator, Hole, TransactionSummary } from './analysis.js';
import type { Slot, SlotUpdate, TraceEvent } from './event.js';
import { duration, exposure, Findings } from './findings.js';
import { type Gone, Missing } from './missing.js';
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

/** The present transaction's summary, as it grows: one object for all, of which copies are listed. */
type Open = { -readonly [Key in keyof TransactionSummary]: TransactionSummary[Key] } & {
  readonly deleted: Slot[];
  readonly created: Slot[];
};

/** What one address space of one VM lost in its last two transactions: the first {@link mostListed} of each. */
interface Lost {
  transaction: number;
  now: Gone[];
  before: Gone[];
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
  #touched = new Map<number, { before: SlotUpdate | undefined; after: SlotUpdate | undefined }>();
  readonly #open: Open = noTransaction();
  /** Whether anyone wants to know about each transaction. */
  #listing = true;
  #updates = 0;
  #failures = 0;
  #exits = 0;
  #windows = 0;
  #inWindow = false;

  constructor(options: AnalyzeOptions = {}) {
    this.#options = options;
    this.#limit = options.limit ?? 10_000;
    this.#findings = new Findings(this.#limit);
    this.#holes = new Worst(this.#limit);
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
    for (const hole of holes) findings.hole(hole);
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
      findings: findings.list(),
      totalFindings: findings.total + this.#holes.total - holes.length,
      timeline: this.#timeline,
      start: findings.start,
      engine: this.#options.engine?.result() ?? null,
    };
  }

  #step(step: Step): void {
    const { update, before } = step;
    this.#updates++;
    this.#findings.start ??= update.time ?? null;
    const open = this.#open;
    if (open.transaction !== step.transaction) this.#openTransaction(step);
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
    if (this.#listing && open.deleted.length < mostListed) open.deleted.push(slot);
    open.bytesTornDown += slot.size;
    totals.tornDown += slot.size;
    const window = this.#inWindow ? this.#windows : 0;
    const gone: Gone = { gpa: slot.gpa, end: slot.gpa + slot.size, slot, by, exits: this.#exits, window };
    this.#missing.add(gone);
    const { now } = this.#lostOf(totals, slot.addressSpace, open.transaction);
    if (now.length < mostListed) now.push(gone);
  }

  #created({ update, before, change }: Step, open: Open, totals: Totals): void {
    const { addressSpace, gpa, size } = update;
    if (this.#listing && open.created.length < mostListed) open.created.push(update);
    if (change === 'create') {
      const id = addressSpace * 0x10000 + update.slot;
      if (before !== undefined || totals.ids.has(id)) {
        open.idsReused++;
        totals.recreated++;
      } else totals.ids.add(id);
    }
    for (const gone of this.#missing.take(gpa, gpa + size)) this.#hole(gone, update, open, totals);
    if (change === 'create') this.#findSplit(update, open, totals);
  }

  #hole(gone: Gone, created: SlotUpdate, open: Open, totals: Totals): void {
    const { slot: was, by: deleted, gpa } = gone;
    const size = gone.end - gpa;
    const reshape = created.hostAddress - created.gpa === was.hostAddress - was.gpa && created.flags === was.flags;
    const inhibited = this.#inWindow && gone.window === this.#windows;
    const exits = this.#exits - gone.exits;
    const micros = duration(deleted, created);
    open.holes++;
    if (reshape) totals.remapped += size;
    const rank = inhibited ? 0 : exits > 0 ? 2 : 1;
    const weight = exposure(size, micros);
    const admitted = this.#holes.admits(rank, weight, deleted.line);
    const { observer } = this.#options;
    if (!admitted && observer === undefined) return;
    const { transaction } = open;
    const { vm, addressSpace } = created;
    // Copies, for the same reason that Worst has: that events live long should be no rule.
    const calls = { was: { ...was }, deleted: { ...deleted }, created: { ...created } };
    const hole: Hole = { transaction, vm, addressSpace, gpa, size, micros, reshape, inhibited, exits, ...calls };
    if (admitted) this.#holes.add(rank, weight, deleted.line, hole);
    observer?.hole(hole);
  }

  /** Whether the memory of a new slot was deleted elsewhere in this transaction, or anywhere in the one before. */
  #findSplit(update: SlotUpdate, open: Open, totals: Totals): void {
    const { now, before } = this.#lostOf(totals, update.addressSpace, open.transaction);
    const here = takeFrom(now, update);
    if (here !== undefined) {
      // A log that marks its commits shows that this is one.
      if (here.slot.gpa === update.gpa || this.#grouper.marked) return;
      this.#findings.split(here.slot, here.by, update, open.transaction, true);
      return;
    }
    const earlier = takeFrom(before, update);
    if (earlier !== undefined) this.#findings.split(earlier.slot, earlier.by, update, open.transaction, false);
  }

  #lostOf(totals: Totals, addressSpace: number, transaction: number): Lost {
    let lost = totals.lost.get(addressSpace);
    if (lost === undefined) {
      lost = { transaction, now: [], before: [] };
      totals.lost.set(addressSpace, lost);
    } else if (lost.transaction !== transaction) {
      lost.before = lost.now;
      lost.now = [];
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

  #openTransaction({ update, transaction, slots }: Step): void {
    this.#closeTransaction();
    this.#missing.clear();
    const open = this.#open;
    open.transaction = transaction;
    open.vm = update.vm;
    open.addressSpace = update.addressSpace;
    open.line = update.line;
    open.time = update.time ?? null;
    open.slots = slots;
    open.deletes = 0;
    open.creates = 0;
    open.moves = 0;
    open.flagChanges = 0;
    open.unchanged = 0;
    open.failures = 0;
    if (this.#listing) open.deleted.length = open.created.length = 0;
    open.bytesTornDown = 0;
    open.holes = 0;
    open.idsReused = 0;
  }

  #closeTransaction(): void {
    const open = this.#open;
    if (open.transaction < 0) return;
    const { engine, observer } = this.#options;
    if (this.#listing) {
      const summary = { ...open, deleted: open.deleted.map(copy), created: open.created.map(copy) };
      if (this.#timeline.length < this.#limit) this.#timeline.push(summary);
      observer?.transaction(summary);
      this.#listing = observer !== undefined || this.#timeline.length < this.#limit;
    }
    if (engine !== undefined) this.#tellEngine(engine, open);
  }

  #tellEngine(engine: EngineEstimator, { vm, addressSpace }: Open): void {
    const deletes: Slot[] = [];
    const creates: Slot[] = [];
    for (const { before, after } of this.#touched.values()) {
      if (before !== undefined && after !== undefined && same(before, after)) continue;
      if (before !== undefined) deletes.push(before);
      if (after !== undefined) creates.push(after);
    }
    this.#touched = new Map();
    if (deletes.length === 0 && creates.length === 0) return;
    const byAddress = (a: Slot, b: Slot) => a.gpa - b.gpa;
    engine.transaction(vm, addressSpace, deletes.sort(byAddress), creates.sort(byAddress));
  }
}

/** Takes out what held the memory of a new slot, all of it. */
function takeFrom(lost: Gone[], { hostAddress, size }: SlotUpdate): Gone | undefined {
  const index = lost.findIndex(({ slot }) => slot.hostAddress === hostAddress && slot.size === size);
  return index < 0 ? undefined : lost.splice(index, 1)[0];
}

function noTransaction(): Open {
  return {
    transaction: -1,
    vm: '',
    addressSpace: 0,
    line: 0,
    time: null,
    endTime: null,
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
    slots: 0,
  };
}

function copy({ addressSpace, slot, flags, gpa, size, hostAddress }: Slot): Slot {
  return { addressSpace, slot, flags, gpa, size, hostAddress };
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
