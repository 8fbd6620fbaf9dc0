import {
  type Hole as AnalysedHole,
  type Analysis,
  Analyzer,
  type FlatViewSnapshot,
  Grouper,
  READONLY,
  type SlotUpdate,
  type Trace,
  type TraceEvent,
} from '../trace/index.js';
import { float64, uint8, uint16, uint32 } from './columns.js';
import { changes, type Hole, kinds, none, noSlot, type Space, type TransactionFigures, unnumbered } from './records.js';

/**
 * A recording in columns: every range that was ever mapped, with the transactions at which it came and went; so the
 * layout at any moment is one pass over a column, forwards as well as backwards. Grows while events are pushed.
 */
export class Timeline {
  readonly spaces: Space[] = [];
  /** Names of regions; index 0 is the empty name. */
  readonly names: string[] = [''];
  /** One row a range: where it was, and from which transaction up to which (exclusive). */
  readonly ranges = {
    space: uint16(),
    gpa: float64(),
    size: float64(),
    /** Host-virtual address, or the offset in its region where only that is known. */
    host: float64(),
    id: uint32(),
    flags: uint8(),
    kind: uint8(),
    name: uint32(),
    born: uint32(),
    died: uint32(),
    /** Row of {@link places}: ranges that begin at the same address of the same space have the same. */
    place: uint32(),
  };
  /** Every address at which some range began. Few, where the same slots come and go. */
  readonly places = { space: uint16(), gpa: float64() };
  /** Every host-virtual address at which some slot's memory began, and the largest size of it. */
  readonly hosts = { start: float64(), size: float64() };
  readonly transactions = {
    space: uint16(),
    time: float64(),
    line: uint32(),
    operations: uint32(),
    holes: uint32(),
    slots: uint32(),
    tornDown: float64(),
    window: float64(),
  };
  /** One row a slot call, in order. */
  readonly operations = { change: uint8(), before: uint32(), after: uint32() };
  readonly holes = {
    transaction: uint32(),
    gpa: float64(),
    size: float64(),
    microseconds: float64(),
    reshape: uint8(),
    inhibited: uint8(),
  };
  /** Counts up with every change, so that what was derived from the columns can be made again. */
  version = 0;
  readonly #grouper = new Grouper();
  readonly #analyzer = new Analyzer({
    observer: { slot: () => {}, transaction: () => {}, hole: (hole) => this.#hole(hole) },
  });
  readonly #spaceOf = new Map<string, number>();
  readonly #nameOf = new Map<string, number>([['', 0]]);
  /** The range that a slot id, or a snapshot's range by its text, stands for now. One map a space. */
  readonly #alive: Map<number | string, number>[] = [];
  /** By space: the row of {@link places} of an address. */
  readonly #placeOf: Map<number, number>[] = [];
  readonly #hostOf = new Map<number, number>();
  /** Number of the transaction as the grouper counts, which knows no snapshots. */
  #group = -1;
  #windowBegin: number | undefined;
  #start: number | undefined;
  /** Spaces that the snapshot being read has shown; undefined outside one. */
  #shown: Set<number> | undefined;
  #snapshotChanged = false;
  #snapshotSlots = 0;

  /** Transactions so far. */
  get length(): number {
    return this.transactions.space.length;
  }

  /** The name of an address space, with its virtual machine where there are several. */
  spaceName(index: number): string {
    const { vm, name } = this.spaces[index]!;
    return this.spaces.every((other) => other.vm === vm) ? name : `${name} (VM ${vm})`;
  }

  /** Takes the next events. */
  push(events: Iterable<TraceEvent>): void {
    for (const event of events) {
      this.#take(event);
      // Tells of the holes that the event closed.
      this.#analyzer.push(event);
    }
    this.version++;
  }

  /** Everything worth knowing, once there are no more events; `trace` tells what was read. */
  finish(trace: Pick<Trace, 'format' | 'counts'>): Analysis {
    return this.#analyzer.finish(trace);
  }

  /** The slots there are now, as the events of one commit: what a timeline can begin with that forgets the past. */
  *present(): Iterable<TraceEvent> {
    const { ranges } = this;
    const unknown = { line: 0, time: undefined, thread: undefined };
    yield { kind: 'commit', ...unknown, transaction: 0 };
    for (const [index, alive] of this.#alive.entries()) {
      const { vm, addressSpace, source } = this.spaces[index]!;
      if (source !== 'slots') continue;
      for (const row of alive.values()) {
        yield {
          kind: 'slot',
          ...unknown,
          vm,
          addressSpace,
          slot: ranges.id.at(row),
          flags: ranges.flags.at(row),
          gpa: ranges.gpa.at(row),
          size: ranges.size.at(row),
          hostAddress: ranges.host.at(row),
          guestMemfd: undefined,
          result: 0,
        };
      }
    }
  }

  /** The figures of transaction `index`. */
  figures(index: number): TransactionFigures {
    const { space, time, line, slots, tornDown, window } = this.transactions;
    const counts = [0, 0, 0, 0, 0, 0];
    for (let row = this.firstOperation(index); row < this.firstOperation(index + 1); row++) {
      counts[this.operations.change.at(row)]!++;
    }
    const [creates, deletes, moves, flagChanges, , failures] = counts as [
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    return {
      index,
      space: space.at(index) === 0xffff ? undefined : space.at(index),
      time: Number.isNaN(time.at(index)) ? undefined : time.at(index),
      line: line.at(index),
      creates: creates + moves,
      deletes: deletes + moves,
      flagChanges,
      failures,
      slots: slots.at(index),
      tornDown: tornDown.at(index),
      window: Number.isNaN(window.at(index)) ? undefined : window.at(index),
      holes: this.holesOf(index),
    };
  }

  /** Row of the first operation of transaction `index`, or where it would be. */
  firstOperation(index: number): number {
    const { operations } = this.transactions;
    return index < operations.length ? operations.at(index) : this.operations.change.length;
  }

  /** The holes of transaction `index`. */
  holesOf(index: number): Hole[] {
    const first = this.transactions.holes;
    const end = index + 1 < first.length ? first.at(index + 1) : this.holes.gpa.length;
    return Array.from({ length: end - first.at(index) }, (_, offset) => this.hole(first.at(index) + offset));
  }

  /** The hole of a row of {@link holes}. */
  hole(row: number): Hole {
    const { gpa, size, microseconds, reshape, inhibited } = this.holes;
    return {
      gpa: gpa.at(row),
      size: size.at(row),
      microseconds: microseconds.at(row),
      reshape: reshape.at(row) === 1,
      inhibited: inhibited.at(row) === 1,
    };
  }

  #take(event: TraceEvent): void {
    if (event.kind === 'slot') this.#takeSlot(event);
    else if (event.kind === 'flat-view') this.#takeView(event);
    else if (event.kind === 'commit') this.#grouper.push(event);
    else if (event.kind === 'window-begin') this.#windowBegin = event.time ?? Number.NaN;
    else if (event.kind === 'window-end' && this.#windowBegin !== undefined && this.length > 0) {
      const length = (event.time ?? Number.NaN) - this.#windowBegin;
      this.transactions.window.set(this.length - 1, Number.isNaN(length) ? 0 : length);
      this.#windowBegin = undefined;
    }
  }

  #takeSlot(event: SlotUpdate): void {
    const step = this.#grouper.push(event)!;
    const space = this.#space(event.vm, event.addressSpace, slotSpaceName(event.addressSpace), 'slots');
    if (this.#group !== step.transaction) {
      this.#group = step.transaction;
      this.#begin(space, event.time, event.line);
    }
    const transaction = this.length - 1;
    if (step.change !== 'failed') this.transactions.space.set(transaction, space);
    const alive = this.#alive[space]!;
    const before = alive.get(event.slot) ?? none;
    let after = before;
    if (step.change !== 'none' && step.change !== 'failed') {
      if (before !== none) this.ranges.died.set(before, transaction);
      if (step.change === 'delete') {
        alive.delete(event.slot);
        after = none;
      } else {
        after = this.#range(space, {
          gpa: event.gpa,
          size: event.size,
          host: event.hostAddress,
          id: event.slot,
          flags: event.flags,
          kind: event.flags & READONLY ? 1 : 0,
          name: 0,
        });
        alive.set(event.slot, after);
      }
    }
    this.transactions.slots.set(transaction, step.slots);
    if ((step.change === 'delete' || step.change === 'move') && step.before !== undefined) {
      const { tornDown } = this.transactions;
      tornDown.set(transaction, tornDown.at(transaction) + step.before.size);
    }
    this.#operation(step.change, before, after);
  }

  #operation(change: (typeof changes)[number], before: number, after: number): void {
    this.operations.change.push(changes.indexOf(change));
    this.operations.before.push(before);
    this.operations.after.push(after);
  }

  #takeView(event: FlatViewSnapshot): void {
    if (event.view === 0 || this.#shown === undefined) {
      this.#endSnapshot();
      this.#shown = new Set();
      this.#snapshotChanged = false;
    }
    const name = ['memory', 'KVM-SMRAM'].find((main) => event.addressSpaces.includes(main)) ?? event.addressSpaces[0];
    const space = this.#space('', 0, name ?? `View ${event.view}`, 'snapshots');
    this.#shown.add(space);
    const alive = this.#alive[space]!;
    const left = new Map(alive);
    for (const range of event.ranges) {
      const key = [range.gpa, range.size, range.type, range.name, range.offset, range.kvm].join('\0');
      if (left.delete(key)) continue;
      const flags = range.nonVolatile ? 8 : 0;
      const row = this.#range(
        space,
        {
          gpa: range.gpa,
          size: range.size,
          host: range.offset,
          id: range.kvm ? unnumbered : noSlot,
          flags: flags | (range.type === 'rom' || range.type === 'romd' ? READONLY : 0),
          kind: kinds.indexOf(range.type),
          name: this.#name(range.name),
        },
        this.#snapshot(event),
      );
      alive.set(key, row);
      this.#operation('create', none, row);
      this.#countSnapshotSlot(row, 1);
    }
    for (const [key, row] of left) this.#remove(space, key, row, event);
  }

  #remove(space: number, key: number | string, row: number, event: FlatViewSnapshot | undefined): void {
    this.ranges.died.set(row, this.#snapshot(event));
    this.#alive[space]!.delete(key);
    this.#operation('delete', row, none);
    this.#countSnapshotSlot(row, -1);
  }

  /** The transaction of the snapshot being read, which begins when the first difference shows. */
  #snapshot(event: FlatViewSnapshot | undefined): number {
    if (!this.#snapshotChanged) {
      this.#snapshotChanged = true;
      this.#begin(0xffff, event?.time, event?.line ?? 0);
    }
    return this.length - 1;
  }

  /** Address spaces that the snapshot before didn't show are gone. */
  #endSnapshot(): void {
    if (this.#shown === undefined) return;
    for (const [space, alive] of this.#alive.entries()) {
      if (this.#shown.has(space)) continue;
      for (const [key, row] of alive) this.#remove(space, key, row, undefined);
    }
    this.#shown = undefined;
  }

  #countSnapshotSlot(row: number, change: number): void {
    if (this.ranges.id.at(row) !== noSlot) this.#snapshotSlots += change;
    this.transactions.slots.set(this.length - 1, this.#snapshotSlots);
  }

  #begin(space: number, time: number | undefined, line: number): void {
    this.#start ??= time;
    this.transactions.space.push(space);
    this.transactions.time.push(time === undefined ? Number.NaN : time - this.#start!);
    this.transactions.line.push(line);
    this.transactions.operations.push(this.operations.change.length);
    this.transactions.holes.push(this.holes.gpa.length);
    this.transactions.slots.push(0);
    this.transactions.tornDown.push(0);
    this.transactions.window.push(Number.NaN);
  }

  #hole({ gpa, size, micros, reshape, inhibited }: AnalysedHole): void {
    this.holes.transaction.push(this.length - 1);
    this.holes.gpa.push(gpa);
    this.holes.size.push(size);
    this.holes.microseconds.push(micros ?? Number.NaN);
    this.holes.reshape.push(reshape ? 1 : 0);
    this.holes.inhibited.push(inhibited ? 1 : 0);
  }

  #range(space: number, values: RangeValues, transaction = this.length - 1): number {
    const { ranges } = this;
    ranges.space.push(space);
    ranges.gpa.push(values.gpa);
    ranges.size.push(values.size);
    ranges.host.push(values.host);
    ranges.id.push(values.id);
    ranges.flags.push(values.flags);
    ranges.kind.push(values.kind);
    ranges.name.push(values.name);
    ranges.born.push(transaction);
    ranges.place.push(this.#place(space, values.gpa));
    if (this.spaces[space]!.source === 'slots') this.#host(values.host, values.size);
    return ranges.died.push(none);
  }

  #place(space: number, gpa: number): number {
    const places = this.#placeOf[space]!;
    let place = places.get(gpa);
    if (place === undefined) {
      this.places.space.push(space);
      place = this.places.gpa.push(gpa);
      places.set(gpa, place);
    }
    return place;
  }

  #host(start: number, size: number): void {
    const { hosts } = this;
    const row = this.#hostOf.get(start);
    if (row === undefined) {
      hosts.start.push(start);
      this.#hostOf.set(start, hosts.size.push(size));
    } else if (size > hosts.size.at(row)) hosts.size.set(row, size);
  }

  #space(vm: string, addressSpace: number, name: string, source: Space['source']): number {
    const key = `${vm}\0${name}\0${source}`;
    let space = this.#spaceOf.get(key);
    if (space === undefined) {
      space = this.spaces.push({ vm, addressSpace, name, source }) - 1;
      this.#spaceOf.set(key, space);
      this.#alive.push(new Map());
      this.#placeOf.push(new Map());
    }
    return space;
  }

  #name(name: string): number {
    let index = this.#nameOf.get(name);
    if (index === undefined) {
      index = this.names.push(name) - 1;
      this.#nameOf.set(name, index);
    }
    return index;
  }
}

type RangeValues = Record<'gpa' | 'size' | 'host' | 'id' | 'flags' | 'kind' | 'name', number>;

function slotSpaceName(addressSpace: number): string {
  return addressSpace === 0
    ? 'Memory'
    : addressSpace === 1
      ? 'System management mode'
      : `Address space ${addressSpace}`;
}
