import { element } from './element.js';
import type { Timeline } from './timeline.js';
import { counted, describeHole } from './words.js';

/** How many findings are listed at most. */
const mostListed = 200;

/** The list of findings, worst first; each leads to its moment. */
export class Findings {
  readonly element: HTMLElement;
  readonly #select: (transaction: number, gpa: number, size: number) => void;
  #version = -1;
  #timeline: Timeline | undefined;

  constructor(select: (transaction: number, gpa: number, size: number) => void) {
    this.#select = select;
    this.element = element('div', { class: 'findings' });
  }

  /** Lists what `timeline` has to tell; marks those of transaction `position`. */
  show(timeline: Timeline, position: number): void {
    if (this.#timeline !== timeline || this.#version !== timeline.version) {
      this.#timeline = timeline;
      this.#version = timeline.version;
      this.#list(timeline);
    }
    for (const item of this.element.querySelectorAll<HTMLElement>('button')) {
      if (item.dataset.transaction === `${position}`) item.setAttribute('aria-current', 'true');
      else item.removeAttribute('aria-current');
    }
  }

  #list(timeline: Timeline): void {
    const { holes } = timeline;
    const weight = (row: number) =>
      holes.size.at(row) * (Number.isNaN(holes.microseconds.at(row)) ? 1 : holes.microseconds.at(row));
    const worst = Array.from({ length: holes.gpa.length }, (_, row) => row).sort((a, b) => weight(b) - weight(a));
    const heading = element('p', { class: 'summary', text: this.#summary(timeline) });
    const items = worst.slice(0, mostListed).map((row) => this.#item(timeline, row));
    const rest = worst.length - items.length;
    this.element.replaceChildren(
      heading,
      element('ol', { children: items }),
      ...(rest > 0 ? [element('p', { class: 'summary', text: `and ${rest.toLocaleString('en')} smaller ones` })] : []),
    );
  }

  #summary(timeline: Timeline): string {
    if (timeline.length === 0) return 'Nothing has been recorded yet.';
    const count = timeline.holes.gpa.length;
    const transactions = new Set(timeline.holes.transaction.cells.subarray(0, count));
    if (timeline.spaces.every(({ source }) => source === 'snapshots')) {
      return `${counted(timeline.length, 'snapshot')} of the memory map. They don't say what happened in between.`;
    }
    if (count === 0) return `${counted(timeline.length, 'transaction')}, none of which left a hole.`;
    return `${counted(count, 'hole')} in ${transactions.size.toLocaleString('en')} of ${counted(timeline.length, 'transaction')}, worst first.`;
  }

  #item(timeline: Timeline, row: number): HTMLElement {
    const { holes, transactions } = timeline;
    const transaction = holes.transaction.at(row);
    const [gpa, size] = [holes.gpa.at(row), holes.size.at(row)];
    const hole = { gpa, size, microseconds: holes.microseconds.at(row), reshape: holes.reshape.at(row) === 1 };
    const time = transactions.time.at(transaction);
    const held = !Number.isNaN(transactions.window.at(transaction));
    const text = describeHole(hole, Number.isNaN(time) ? undefined : time, held);
    const button = element('button', {
      attributes: { type: 'button' },
      children: [element('span', { text }), element('small', { text: `transaction ${transaction + 1}` })],
      onClick: () => this.#select(transaction, gpa, size),
    });
    button.dataset.transaction = `${transaction}`;
    return element('li', { children: [button] });
  }
}
