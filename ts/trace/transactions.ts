import type { SlotUpdate, TraceEvent } from './event.js';
import { type Effect, Layout } from './layout.js';

/** A slot call with its effect and its place. */
export interface Step extends Effect {
  readonly update: SlotUpdate;
  /** The index of the transaction it belongs to: unique in the log, whatever its VM and address space. */
  readonly transaction: number;
  /** The slots in use after the call, all address spaces of the VM together. */
  readonly slots: number;
}

/** The slot calls that one change of one address space's memory map made. */
export interface Transaction {
  readonly index: number;
  readonly vm: string;
  readonly addressSpace: number;
  readonly steps: readonly Step[];
}

/**
 * Groups slot calls into transactions as they come, and keeps each VM's layout meanwhile.
 *
 * QEMU applies a commit's deletes before its creates, one address space after another, and its log doesn't say where a
 * commit begins. So a transaction begins at the first delete after a create, and at a change of address space or VM. A
 * move ends the deletes as a create does; calls that change flags or nothing are neither; failed calls begin nothing.
 * Logs of this library do say it, so that there a transaction begins at each such line, and at a change of address
 * space or VM.
 */
export class Grouper {
  readonly #layouts = new Map<string, Layout>();
  #index = -1;
  #vm = '';
  #addressSpace = 0;
  /** The present transaction holds nothing but failed calls: the next call that succeeds says whose it is. */
  #onlyFailures = false;
  #creates = false;
  #marked = false;
  #atMark = false;

  /** The number of transactions so far. */
  get transactions(): number {
    return this.#index + 1;
  }

  /** Whether the log itself marks where commits begin. */
  get marked(): boolean {
    return this.#marked;
  }

  /** The layouts by VM, as they are now. */
  get layouts(): ReadonlyMap<string, Layout> {
    return this.#layouts;
  }

  /** The step that a slot call makes; `undefined` for other events. */
  push(event: TraceEvent): Step | undefined {
    if (event.kind === 'commit') {
      this.#marked = true;
      this.#atMark = true;
    }
    if (event.kind !== 'slot') return undefined;
    const layout = this.#layoutOf(event.vm);
    const { change, before, after, contradiction } = layout.apply(event);
    const first = this.#index < 0 || this.#atMark;
    if (change === 'failed') {
      if (first) this.#begin(event, true);
    } else if (
      first ||
      (!this.#onlyFailures && (event.vm !== this.#vm || event.addressSpace !== this.#addressSpace)) ||
      (change === 'delete' && this.#creates && !this.#marked)
    ) {
      this.#begin(event, false);
    } else if (this.#onlyFailures) {
      this.#onlyFailures = false;
      this.#vm = event.vm;
      this.#addressSpace = event.addressSpace;
    }
    if (change === 'create' || change === 'move') this.#creates = true;
    return { change, before, after, contradiction, update: event, transaction: this.#index, slots: layout.size };
  }

  #begin(update: SlotUpdate, failed: boolean): void {
    this.#index++;
    this.#vm = update.vm;
    this.#addressSpace = update.addressSpace;
    this.#onlyFailures = failed;
    this.#creates = false;
    this.#atMark = false;
  }

  #layoutOf(vm: string): Layout {
    let layout = this.#layouts.get(vm);
    if (layout === undefined) {
      layout = new Layout();
      this.#layouts.set(vm, layout);
    }
    return layout;
  }
}

/**
 * Groups a log's slot calls into transactions (the rule: {@link Grouper}); `grouper`, if given, keeps the layouts. A
 * transaction is held as a whole until the next one begins.
 */
export async function* groupTransactions(
  events: AsyncIterable<TraceEvent> | Iterable<TraceEvent>,
  grouper: Grouper = new Grouper(),
): AsyncGenerator<Transaction, void, undefined> {
  let steps: Step[] = [];
  for await (const event of events) {
    const step = grouper.push(event);
    if (step === undefined) continue;
    const last = steps.at(-1);
    if (last !== undefined && last.transaction !== step.transaction) {
      yield transactionOf(steps);
      steps = [];
    }
    steps.push(step);
  }
  if (steps.length > 0) yield transactionOf(steps);
}

function transactionOf(steps: readonly Step[]): Transaction {
  const { update, transaction } = steps.find(({ change }) => change !== 'failed') ?? steps[0]!;
  return { index: transaction, vm: update.vm, addressSpace: update.addressSpace, steps };
}
