import { formatRange } from '../core/checks.js';
import type { FlatRange, FlatViewSnapshot } from './event.js';
import type { Findings } from './findings.js';

type Views = Map<string, FlatViewSnapshot>;

/** Compares each snapshot of flat views with the one before it. */
export class Snapshots {
  #before: Views | undefined;
  #views: Views = new Map();
  #count = 0;
  #maxSlots = 0;

  /** How many snapshots there were. */
  get count(): number {
    return this.#count + (this.#views.size > 0 ? 1 : 0);
  }

  /** The most ranges that KVM slots matched in one snapshot. */
  get maxSlots(): number {
    return this.#maxSlots;
  }

  push(view: FlatViewSnapshot, findings: Findings): void {
    const name = view.addressSpaces.join(', ');
    if (view.view === 0 || this.#views.has(name)) this.finish(findings);
    this.#views.set(name, view);
  }

  finish(findings: Findings): void {
    if (this.#views.size === 0) return;
    const before = this.#before;
    let slots = 0;
    for (const [name, view] of this.#views) {
      slots += view.ranges.filter(({ kvm }) => kvm).length;
      const old = before?.get(name);
      if (old !== undefined) compare(old, view, name, this.#count, findings);
    }
    this.#maxSlots = Math.max(this.#maxSlots, slots);
    this.#count++;
    this.#before = this.#views;
    this.#views = new Map();
  }
}

function compare(old: FlatViewSnapshot, now: FlatViewSnapshot, name: string, index: number, findings: Findings): void {
  const gone = without(old.ranges, now.ranges);
  const added = without(now.ranges, old.ranges);
  if (gone.length === 0 && added.length === 0) return;
  findings.snapshot(now.line, () => `snapshot ${index}: ${name}: ${list('gone', gone)}; ${list('new', added)}`);
}

function without(ranges: readonly FlatRange[], others: readonly FlatRange[]): FlatRange[] {
  const known = new Set(others.map(key));
  return ranges.filter((range) => !known.has(key(range)));
}

function key({ gpa, size, type, name, offset }: FlatRange): string {
  return JSON.stringify([gpa, size, type, name, offset]);
}

function list(word: string, ranges: readonly FlatRange[]): string {
  const shown = ranges.slice(0, 3).map(({ name, type, gpa, size }) => `${name} (${type}) ${formatRange(gpa, size)}`);
  if (ranges.length > shown.length) shown.push(`${ranges.length - shown.length} more`);
  return `${word}: ${shown.join(', ') || 'nothing'}`;
}
