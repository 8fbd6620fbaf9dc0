import type { Analysis } from '../trace/index.js';
import { lowerBound } from './columns.js';
import { element } from './element.js';
import type { Hole } from './records.js';
import type { Timeline } from './timeline.js';
import { counted, describeHole } from './words.js';

/** How many findings are listed at most. */
const mostListed = 200;

interface Item {
  readonly severity: 'error' | 'warning' | 'note';
  readonly text: string;
  /** Where it leads; undefined if it is about the whole. */
  readonly transaction: number | undefined;
  /** What it is about, if that is one hole. */
  readonly hole?: Hole;
}

/** The list of findings, worst first; each leads to its moment. */
export class Findings {
  readonly element: HTMLElement;
  readonly #select: (transaction: number, hole: Hole | undefined) => void;
  #version = -1;
  #timeline: Timeline | undefined;
  #analysis: Analysis | undefined;

  /** `select` is told the transaction of the finding that the user picks, and the hole, if it is one. */
  constructor(select: (transaction: number, hole: Hole | undefined) => void) {
    this.#select = select;
    this.element = element('div', { class: 'findings' });
  }

  /** Lists what `timeline` has to tell, and its analysis where it has come to its end; marks those of `position`. */
  show(timeline: Timeline, analysis: Analysis | undefined, position: number): void {
    if (this.#timeline !== timeline || this.#version !== timeline.version || this.#analysis !== analysis) {
      this.#timeline = timeline;
      this.#version = timeline.version;
      this.#analysis = analysis;
      this.#list(timeline, analysis);
    }
    for (const item of this.element.querySelectorAll<HTMLElement>('button')) {
      if (item.dataset.transaction === `${position}`) item.setAttribute('aria-current', 'true');
      else item.removeAttribute('aria-current');
    }
  }

  #list(timeline: Timeline, analysis: Analysis | undefined): void {
    const items = analysis === undefined ? fromTimeline(timeline) : fromAnalysis(timeline, analysis);
    const total = analysis?.totalFindings ?? timeline.holes.gpa.length;
    const shown = items.slice(0, mostListed);
    const rest = total - shown.length;
    const active = (this.element.getRootNode() as Document | ShadowRoot).activeElement;
    const focused =
      active instanceof HTMLElement && this.element.contains(active) ? active.dataset.transaction : undefined;
    this.element.replaceChildren(
      element('p', { class: 'summary', text: summary(timeline) }),
      element('ol', { children: shown.map((item) => this.#item(item)) }),
      ...(rest > 0 ? [element('p', { class: 'summary', text: `and ${rest.toLocaleString('en')} lesser ones` })] : []),
    );
    // Of a live source the list is made again and again: whoever is in it stays there.
    if (focused !== undefined) {
      this.element.querySelector<HTMLElement>(`[data-transaction="${focused}"]`)?.focus({ preventScroll: true });
    }
  }

  #item({ severity, text, transaction, hole }: Item): HTMLElement {
    const kind = { error: '✖ ', warning: '▲ ', note: '' }[severity];
    const place = transaction === undefined ? 'the whole recording' : `transaction ${transaction + 1}`;
    const parts = [element('span', { text: kind + text }), element('small', { text: `${severity} · ${place}` })];
    if (transaction === undefined) return element('li', { class: `${severity} whole`, children: parts });
    const button = element('button', {
      attributes: { type: 'button' },
      children: parts,
      onClick: () => this.#select(transaction, hole),
    });
    button.dataset.transaction = `${transaction}`;
    return element('li', { class: severity, children: [button] });
  }
}

function summary(timeline: Timeline): string {
  if (timeline.length === 0) return 'Nothing has been recorded yet.';
  if (timeline.spaces.every(({ source }) => source === 'snapshots')) {
    return `${counted(timeline.length, 'snapshot')} of the memory map. They don't say what happened in between.`;
  }
  const count = timeline.holes.gpa.length;
  if (count === 0) return `${counted(timeline.length, 'transaction')}, none of which left a hole.`;
  const hidden = timeline.holes.inhibited.cells.subarray(0, count).reduce((sum, value) => sum + value, 0);
  const transactions = new Set(timeline.holes.transaction.cells.subarray(0, count)).size.toLocaleString('en');
  const held =
    hidden === 0 ? '' : hidden === count ? ', while all vCPUs were held' : `, ${hidden} while vCPUs were held`;
  return `${counted(count, 'hole')} in ${transactions} of ${counted(timeline.length, 'transaction')}${held}. Worst first.`;
}

function fromAnalysis(timeline: Timeline, { findings }: Analysis): Item[] {
  return findings.map(({ severity, text, transaction, line }) => ({
    severity,
    text: text[0]!.toUpperCase() + text.slice(1),
    transaction: transaction ?? (line === null ? undefined : transactionAt(timeline, line)),
  }));
}

/** The transaction that line `line` of the log belongs to. */
function transactionAt({ transactions, length }: Timeline, line: number): number | undefined {
  const index = lowerBound(transactions.line.cells, length, line + 1) - 1;
  return index < 0 ? undefined : index;
}

/** What can be said before the end is known: the holes, by size and time. */
function fromTimeline(timeline: Timeline): Item[] {
  const { holes, transactions } = timeline;
  const weight = (row: number) =>
    holes.inhibited.at(row) === 1 ? 0 : holes.size.at(row) * Math.max(1, holes.microseconds.at(row) || 1);
  const worst = Array.from({ length: holes.gpa.length }, (_, row) => row).sort((a, b) => weight(b) - weight(a));
  return worst.slice(0, mostListed).map((row) => {
    const transaction = holes.transaction.at(row);
    const hole = timeline.hole(row);
    const time = transactions.time.at(transaction);
    return {
      severity: hole.inhibited ? 'note' : 'error',
      text: describeHole(hole, Number.isNaN(time) ? undefined : time),
      transaction,
      hole,
    };
  });
}
