import { MemorySlotsError } from '../core/errors.js';
import type { FlatRange } from './flat-view.js';

/** A range of one address space, as listeners get it. `S` is the type of the address space. */
export interface SectionOf<S> extends FlatRange {
  readonly addressSpace: S;
}

/**
 * Follows the map of some address spaces. Every transaction that changes one of them is told as one
 * `begin … commit`: first `delete` for each range that is gone, then `add`, `unchanged`, `logStart` and `logStop`, each
 * part in order of address space, then of address. A range that changes in any way but its logging mark is deleted and
 * added; `add` carries the mark, `logStart` and `logStop` are for ranges that stay. `unchanged` is called for all that
 * stay in any of the listener's address spaces, also in one that didn't change.
 *
 * Of several listeners, the one with the lowest `priority` (0 unless given) hears first, with `delete` last.
 *
 * A listener that can't follow throws from `commit`, having made sure that it still holds what it held at `begin`. The
 * map then returns to what it was, and every other listener with it: one that has committed is told the opposite change
 * as one more `begin … commit`; one that has heard something but not committed is told `rollback`, or if it has none,
 * `commit` and then the opposite. They find tree and views as they were. Throwing from another method counts as that
 * one thing not having been told.
 *
 * Called on the owner thread, synchronously; must not edit the map or its listeners.
 */
export interface ListenerOf<S> {
  readonly priority?: number;
  begin?(): void;
  delete?(section: SectionOf<S>): void;
  add?(section: SectionOf<S>): void;
  unchanged?(section: SectionOf<S>): void;
  logStart?(section: SectionOf<S>): void;
  logStop?(section: SectionOf<S>): void;
  commit?(): void;
  /** Everything heard since `begin` won't happen. */
  rollback?(): void;
}

/** One thing a listener is told. `was` is the same range before, where that differs only in the logging mark. */
export interface MapEvent<S> {
  readonly type: 'delete' | 'add' | 'unchanged' | 'logStart' | 'logStop';
  readonly section: SectionOf<S>;
  readonly was?: SectionOf<S>;
}

/** What one listener is to be told of one transaction, in order. */
export interface Announcement<S> {
  readonly listener: ListenerOf<S>;
  readonly events: readonly MapEvent<S>[];
}

const opposites = {
  delete: 'add',
  add: 'delete',
  unchanged: 'unchanged',
  logStart: 'logStop',
  logStop: 'logStart',
} as const;

/**
 * Tells each listener its announcement; they come by ascending priority. If one throws, all that heard anything are
 * brought back to what they held before, the latest first, and the error is thrown on: a `STATE` error naming both
 * failures if one of them can't even be brought back. `restore` is called before that, to put back what they may look
 * at.
 */
export function announce<S extends { readonly index: number }>(
  announcements: readonly Announcement<S>[],
  restore: () => void,
): void {
  const deliveries = announcements.map((announcement) => new Delivery(announcement));
  try {
    for (const delivery of deliveries) delivery.begin();
    for (const delivery of deliveries.toReversed()) delivery.tell((type) => type === 'delete');
    for (const delivery of deliveries) delivery.tell((type) => type !== 'delete');
    for (const delivery of deliveries) delivery.commit();
  } catch (error) {
    restore();
    const failures: unknown[] = [];
    for (const delivery of deliveries.toReversed()) {
      try {
        delivery.undo();
      } catch (failure) {
        failures.push(failure);
      }
    }
    if (failures.length === 0) throw error;
    const texts = failures.map(textOf).join('; ');
    throw new MemorySlotsError(
      'STATE',
      `${textOf(error)}; bringing the other listeners back failed as well, so they may not hold the present map: ${texts}`,
      { cause: new AggregateError([error, ...failures]) },
    );
  }
}

/** One listener's way through one transaction. */
class Delivery<S extends { readonly index: number }> {
  readonly #listener: ListenerOf<S>;
  readonly #events: readonly MapEvent<S>[];
  readonly #told: MapEvent<S>[] = [];
  /** `settled`: the listener answers for itself, having heard nothing or refused the commit. */
  #state: 'settled' | 'told' | 'committed' = 'settled';

  constructor({ listener, events }: Announcement<S>) {
    this.#listener = listener;
    this.#events = events;
  }

  begin(): void {
    this.#listener.begin?.();
    this.#state = 'told';
  }

  tell(wanted: (type: MapEvent<S>['type']) => boolean): void {
    for (const event of this.#events) {
      if (!wanted(event.type)) continue;
      this.#listener[event.type]?.(event.section);
      this.#told.push(event);
    }
  }

  commit(): void {
    this.#state = 'settled';
    this.#listener.commit?.();
    this.#state = 'committed';
  }

  /** Brings the listener back to what it held at `begin`. */
  undo(): void {
    if (this.#state === 'told') {
      if (this.#listener.rollback !== undefined) {
        this.#listener.rollback();
        return;
      }
      try {
        this.commit();
      } catch {
        // A commit that throws leaves what was held at `begin`, which is what is wanted here.
      }
    }
    if (this.#state === 'settled') return;
    const opposite = this.#told.map(
      ({ type, section, was }): MapEvent<S> => ({ type: opposites[type], section: was ?? section }),
    );
    const inverse = new Delivery<S>({ listener: this.#listener, events: opposite.sort(byPlace) });
    inverse.begin();
    inverse.tell((type) => type === 'delete');
    inverse.tell((type) => type !== 'delete');
    inverse.commit();
  }
}

/** By address space, then address. Stable, so what is told of the same range keeps its order. */
function byPlace<S extends { readonly index: number }>(a: MapEvent<S>, b: MapEvent<S>): number {
  const spaces = a.section.addressSpace.index - b.section.addressSpace.index;
  if (spaces !== 0) return spaces;
  return a.section.gpa < b.section.gpa ? -1 : a.section.gpa > b.section.gpa ? 1 : 0;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
