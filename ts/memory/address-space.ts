import { MemorySlotsError } from '../core/errors.js';
import { type Address, addressSpaceEnd, lower } from './address.js';
import { type FlatRange, FlatView, sameRange } from './flat-view.js';
import { type Announcement, announce, type ListenerOf, type MapEvent, type SectionOf } from './listener.js';
import type { MemoryRegion } from './region.js';
import { type Change, type RenderWork, rerender, type Window } from './render.js';
import { Transactions } from './transactions.js';

/** A range of an address space, as listeners get it. */
export type Section = SectionOf<AddressSpace>;
/** Follows the map of some address spaces: see {@link ListenerOf} for what it hears and may answer. */
export type MemoryListener = ListenerOf<AddressSpace>;

/** What {@link MemoryMap.addListener} returns. Disposing of it detaches the listener. */
export interface ListenerHandle extends Disposable {
  /**
   * Tells the listener `delete` for every range it holds, within one `begin … commit`, and nothing after. Doing it
   * again does nothing. If the listener throws it stays attached, and the error is thrown on. Owner thread only.
   */
  detach(): void;
}

/** A changed address space at the end of a transaction. */
interface SpaceChange {
  readonly space: AddressSpace;
  readonly before: FlatView;
  readonly after: FlatView;
  readonly changes: readonly Change[];
}

interface Registration {
  readonly listener: MemoryListener;
  /** By ascending index. */
  readonly spaces: readonly AddressSpace[];
}

/**
 * One machine's memory map: the transactions of its tree of regions, its address spaces, and those who follow them.
 * Owner thread only.
 */
export class MemoryMap extends Transactions {
  readonly #spaces: AddressSpace[] = [];
  /** By ascending priority, the earliest first among equals. */
  readonly #registrations: Registration[] = [];
  readonly #work: { regionVisits: number; comparisons: number } = { regionVisits: 0, comparisons: 0 };

  /** In order of their index. */
  get addressSpaces(): readonly AddressSpace[] {
    return this.#spaces;
  }

  /** What rendering has cost since the map was made. */
  get renderWork(): Readonly<RenderWork> {
    return { ...this.#work };
  }

  /**
   * Attaches `listener` to address spaces of this map: it is told their present ranges, as last committed, as one
   * `begin … add … commit`, and every change from then on. If it throws it isn't attached, and the error is thrown on.
   * Throws `INVALID` for no address space, a repeated one, or one of another map.
   */
  addListener(listener: MemoryListener, addressSpaces: readonly AddressSpace[]): ListenerHandle {
    const spaces = [...addressSpaces].sort((a, b) => a.index - b.index);
    if (spaces.length === 0) throw new MemorySlotsError('INVALID', 'a listener needs at least one address space');
    for (const [index, space] of spaces.entries()) {
      if (this.#spaces[space.index] !== space) {
        throw new MemorySlotsError('INVALID', `address space '${space.name}' isn't one of this map`);
      }
      if (spaces[index + 1] === space) {
        throw new MemorySlotsError('INVALID', `address space '${space.name}' is given twice`);
      }
    }
    const registration = { listener, spaces };
    const held = (type: 'add' | 'delete'): Announcement<AddressSpace> => ({
      listener,
      events: spaces.flatMap((space) => space.view.ranges.map((range) => ({ type, section: sectionOf(space, range) }))),
    });
    this.guarded(() => announce([held('add')], () => undefined));
    const priority = listener.priority ?? 0;
    const later = this.#registrations.findIndex((other) => (other.listener.priority ?? 0) > priority);
    this.#registrations.splice(later < 0 ? this.#registrations.length : later, 0, registration);
    const detach = () => {
      const index = this.#registrations.indexOf(registration);
      if (index < 0) return;
      this.guarded(() => announce([held('delete')], () => undefined));
      this.#registrations.splice(index, 1);
    };
    return { detach, [Symbol.dispose]: detach };
  }

  /** For a new address space: its place among the others, as an edit of the open transaction. */
  register(space: AddressSpace): number {
    this.record(() => this.#spaces.pop());
    return this.#spaces.push(space) - 1;
  }

  protected override publish(undo: () => void): void {
    const changed = this.#spaces.flatMap((space) => space.prepare(this.#work) ?? []);
    for (const { space, after } of changed) space.show(after);
    announce(this.#announcements(changed), () => {
      for (const { space, before } of changed) space.show(before);
      undo();
    });
  }

  protected override discard(): void {
    for (const space of this.#spaces) space.forgetEdits();
  }

  #announcements(changed: readonly SpaceChange[]): Announcement<AddressSpace>[] {
    const told = changed.map(({ space, changes }) => ({ space, events: eventsOf(space, changes) }));
    return this.#registrations.flatMap(({ listener, spaces }) => {
      const concerned = told.filter(({ space }) => spaces.includes(space));
      const [first, ...others] = concerned;
      if (first === undefined) return [];
      const events = others.length === 0 ? first.events : concerned.flatMap(({ events }) => events);
      if (listener.unchanged === undefined) return { listener, events };
      return { listener, events: withUnchanged(spaces, events) };
    });
  }
}

/** Addresses from 0 to 2^64, shown through the tree below one region. */
export class AddressSpace {
  readonly name: string;
  readonly root: MemoryRegion;
  /** Place among the address spaces of its map, from 0. */
  readonly index: number;
  #view = FlatView.empty;
  #edited: Window[] = [];

  /**
   * Shows `root`: at address 0, or where it is in its container if it is in one, as QEMU does. Made within a
   * transaction, it is empty until that ends, and is gone with it if it is undone. Throws `INVALID` for a root of
   * another map, and what rendering throws. Owner thread only.
   */
  constructor(map: MemoryMap, name: string, root: MemoryRegion) {
    if (!root.belongsTo(map)) {
      throw new MemorySlotsError('INVALID', `'${root.name}' belongs to another map than address space '${name}'`);
    }
    this.name = name;
    this.root = root;
    this.index = map.transaction(() => {
      const index = map.register(this);
      root.addRoot(this);
      return index;
    });
  }

  /** The map as of the last committed transaction. */
  get view(): FlatView {
    return this.#view;
  }

  /** For the root region: something in [`start`, `end`) was edited. */
  invalidate(start: Address, end: Address): void {
    if (start < addressSpaceEnd) this.#edited.push({ start, end: lower(end, addressSpaceEnd) });
  }

  /** For the map: what the edits since the last call came to; undefined if nothing shows of them. */
  prepare(work: RenderWork): SpaceChange | undefined {
    if (this.#edited.length === 0) return undefined;
    const before = this.#view;
    const { view: after, changes } = rerender(this.root, before, this.#edited, work);
    this.#edited = [];
    return changes.length === 0 ? undefined : { space: this, before, after, changes };
  }

  /** For the map: sets the visible view. */
  show(view: FlatView): void {
    this.#view = view;
  }

  /** For the map: the edits so far were undone. */
  forgetEdits(): void {
    this.#edited = [];
  }
}

function sectionOf(addressSpace: AddressSpace, range: FlatRange): Section {
  // Spreading the range would take ten times as long.
  const { gpa, size, region, offset, readonly, romMode, nonvolatile, logging } = range;
  return { gpa, size, region, offset, readonly, romMode, nonvolatile, logging, addressSpace };
}

/** What listeners hear of one address space, by address. */
function eventsOf(space: AddressSpace, changes: readonly Change[]): MapEvent<AddressSpace>[] {
  const events: MapEvent<AddressSpace>[] = [];
  for (const { before, after } of changes) {
    let [old, now] = [0, 0];
    while (old < before.length || now < after.length) {
      const [a, b] = [before[old], after[now]];
      if (a !== undefined && b !== undefined && sameRange(a, b)) {
        if (a.logging !== b.logging) {
          const type = b.logging ? 'logStart' : 'logStop';
          events.push({ type, section: sectionOf(space, b), was: sectionOf(space, a) });
        }
        old++;
        now++;
      } else if (a !== undefined && (b === undefined || a.gpa <= b.gpa)) {
        events.push({ type: 'delete', section: sectionOf(space, a) });
        old++;
      } else {
        events.push({ type: 'add', section: sectionOf(space, b!) });
        now++;
      }
    }
  }
  return events;
}

/** The events, and every range of `spaces` that isn't new, in order of address space and address. */
function withUnchanged(
  spaces: readonly AddressSpace[],
  events: readonly MapEvent<AddressSpace>[],
): MapEvent<AddressSpace>[] {
  const merged: MapEvent<AddressSpace>[] = [];
  let next = 0;
  for (const space of spaces) {
    for (const range of space.view.ranges) {
      const told: MapEvent<AddressSpace>[] = [];
      for (; next < events.length; next++) {
        const event = events[next]!;
        if (event.section.addressSpace !== space || event.section.gpa > range.gpa) break;
        told.push(event);
      }
      const isNew = told.some(({ type, section }) => type === 'add' && section.gpa === range.gpa);
      const was = told.find((event) => event.was !== undefined)?.was;
      const section = sectionOf(space, range);
      if (!isNew) merged.push({ type: 'unchanged', section, ...(was === undefined ? {} : { was }) });
      merged.push(...told);
    }
    for (; next < events.length && events[next]!.section.addressSpace === space; next++) merged.push(events[next]!);
  }
  return merged;
}
