import { MemorySlotsError } from '../core/errors.js';

/**
 * The transactions of one memory map: their nesting, and how to undo what they have done so far. Regions make their
 * edits through it; {@link MemoryMap} adds what happens at the end of the outermost transaction.
 *
 * Owner thread only, and synchronous: a transaction can't span an `await`.
 */
export abstract class Transactions {
  #depth = 0;
  /** Open `begin()`s below this belong to an enclosing closure, and `commit()` must not end them. */
  #floor = 0;
  #undo: (() => void)[] = [];
  #publishing = false;
  #regions = 0;
  #ages = 0;

  /**
   * Makes the edited tree visible, or throws having made nothing visible. Once it is clear that it will throw, it calls
   * `undo` to have the tree as it was before it tells anyone that nothing has happened.
   */
  protected abstract publish(undo: () => void): void;
  /** Forgets which addresses were edited: the tree is again what it was at the last publication. */
  protected abstract discard(): void;

  /**
   * Runs `edit` as one transaction and returns its result: whatever it does to regions becomes visible at one moment,
   * when the outermost transaction ends. If `edit` throws, the tree is what it was before, the error is thrown on, and
   * listeners hear nothing; an enclosing transaction may catch it and go on.
   *
   * Throws what `edit` throws; whatever a listener's `commit` throws, with the tree restored; `INVALID` if `edit` is
   * asynchronous; `STATE` if it leaves a `begin()` open, or if a listener calls this during a commit.
   */
  transaction<T>(edit: () => T): T {
    const depth = this.#depth;
    const floor = this.#floor;
    const mark = this.#undo.length;
    this.begin();
    this.#floor = depth + 1;
    let result: T;
    try {
      result = edit();
      if (result instanceof Promise) {
        result.catch(() => undefined);
        throw new MemorySlotsError('INVALID', 'a transaction is synchronous: its closure must not return a promise');
      }
      if (this.#depth !== depth + 1) {
        const open = this.#depth - depth - 1;
        throw new MemorySlotsError('STATE', `a transaction ended with ${open} begin() that had no commit(); undone`);
      }
    } catch (error) {
      this.#depth = depth;
      this.#floor = floor;
      this.#rewind(mark);
      if (depth === 0) this.discard();
      throw error;
    }
    this.#floor = floor;
    this.commit();
    return result;
  }

  /** Whether a transaction is open, and edits may be made in it. */
  get inTransaction(): boolean {
    return this.#depth > 0 && !this.#publishing;
  }

  /** Opens a transaction that a matching {@link commit} ends. Throws `STATE` during a commit. */
  begin(): void {
    if (this.#publishing) {
      throw new MemorySlotsError(
        'STATE',
        'a listener must not edit the map it is being told about; nothing was changed',
      );
    }
    this.#depth++;
  }

  /**
   * Ends the innermost {@link begin}; at the outermost one the edits become visible. If a listener refuses them by
   * throwing, the tree is what it was before the outermost `begin`, and the error is thrown on. Throws `STATE` without
   * a `begin()` to end.
   */
  commit(): void {
    if (this.#depth === this.#floor) throw new MemorySlotsError('STATE', 'commit() without a begin() to end');
    this.#depth--;
    if (this.#depth > 0) return;
    this.#publishing = true;
    try {
      this.publish(() => this.#rewind(0));
    } catch (error) {
      this.#rewind(0);
      this.discard();
      throw error;
    } finally {
      this.#publishing = false;
      this.#undo = [];
    }
  }

  /** For regions: notes how to undo an edit just made inside a transaction. */
  record(undo: () => void): void {
    this.#undo.push(undo);
  }

  /** For regions: the identity of a new one, from 1 up, unique in this map. */
  nextRegionId(): number {
    return ++this.#regions;
  }

  /** For regions: a number higher than all before. */
  nextAge(): number {
    return ++this.#ages;
  }

  /** Runs `tell`, which calls listeners, with edits refused meanwhile. */
  protected guarded<T>(tell: () => T): T {
    if (this.#publishing) {
      throw new MemorySlotsError('STATE', 'listeners must not come and go during a commit; nothing was changed');
    }
    this.#publishing = true;
    try {
      return tell();
    } finally {
      this.#publishing = false;
    }
  }

  #rewind(mark: number): void {
    while (this.#undo.length > mark) this.#undo.pop()!();
  }
}
