import { errno } from '../../ts/core/core.js';
import { MemorySlotsError } from '../../ts/core/errors.js';
import type { Machine } from '../../ts/kvm/machine.js';
import { type CommitRecord, SlotIoctlError } from '../../ts/kvm/slots-listener.js';
import type { Field, Random } from './field.js';
import { tableDifferences } from './tables.js';
import type { Tally } from './tally.js';
import type { WatchedBackend } from './watched-backend.js';

/** Transactions between two looks at the tables, and between two at the dirty log. */
const tableInterval = 32;
const dirtyInterval = 20;
/** What becomes of so many in a hundred transactions. */
const percent = { failed: 3, abandoned: 1, planned: 1 } as const;
const errors = [errno.ENOMEM, errno.EEXIST, errno.EINVAL];
const abandoned = new Error('the edit is abandoned');

/** Random transactions of a field, some of which are made to fail. */
export class Storm {
  readonly #machine: Machine;
  readonly #backend: WatchedBackend;
  readonly #field: Field;
  readonly #random: Random;
  readonly #tally: Tally;
  #transactions = 0;

  constructor(machine: Machine, backend: WatchedBackend, field: Field, random: Random, tally: Tally) {
    this.#machine = machine;
    this.#backend = backend;
    this.#field = field;
    this.#random = random;
    this.#tally = tally;
  }

  /** For the machine's `onCommit`. */
  record({ overlap, windowMicroseconds }: CommitRecord): void {
    const { counts } = this.#tally;
    counts.commits++;
    if (overlap) counts.overlapping++;
    if (windowMicroseconds === undefined) return;
    counts.inhibits++;
    this.#tally.maxWindowMicros = Math.max(this.#tally.maxWindowMicros, windowMicroseconds);
  }

  /** One transaction; then, whatever came of it, the tables must agree. */
  transact(): void {
    const { view } = this.#machine.memory;
    const unmade = this.#make(this.#field.edit());
    if (unmade && this.#machine.memory.view !== view) {
      this.#tally.problems.push('a transaction that failed left its changes in the memory map');
    }
    if (unmade || ++this.#transactions % tableInterval === 0) this.check();
    if (this.#transactions % dirtyInterval === 0) {
      this.#tally.counts.dirtyPages += this.#machine.takeDirtyPages(this.#field.code).length;
    }
  }

  /** Whether the transaction of `edit` was not made: it was to fail, it was cancelled, or it was only planned. */
  #make(edit: () => void): boolean {
    const { counts, problems } = this.#tally;
    const machine = this.#machine;
    const fate = this.#random() * 100;
    const below = (end: number) => Math.floor(this.#random() * end);
    try {
      if (fate < percent.planned) {
        machine.plan(edit);
        counts.planned++;
        return true;
      }
      if (fate > 100 - percent.failed) this.#backend.failAfter({ after: below(4), errno: errors[below(3)]! });
      machine.transaction(() => {
        edit();
        if (fate < percent.planned + percent.abandoned) throw abandoned;
      });
      return false;
    } catch (error) {
      if (error === abandoned) counts.abandoned++;
      else if (error instanceof SlotIoctlError && error.undone && !this.#backend.armed) counts.failed++;
      else if (error instanceof MemorySlotsError && error.code === 'CANCELLED') counts.cancelled++;
      else {
        if (error instanceof MemorySlotsError && error.code === 'TIMEOUT') counts.timeouts++;
        problems.push(`a transaction ended in ${error}`);
      }
      return true;
    } finally {
      this.#backend.failAfter();
    }
  }

  /** Compares the tables. */
  check(): void {
    this.#tally.counts.tableChecks++;
    this.#tally.problems.push(...tableDifferences(this.#machine, this.#backend), ...this.#backend.violations.splice(0));
  }
}
