import { button, element } from './element.js';
import { type Moment, marks } from './lanes.js';
import { noSlot, unnumbered } from './records.js';
import { bytes, flagNames, hexadecimal } from './words.js';

const pageRows = 100;

/** The present layout as a table: what the map shows, for those who read rather than look. */
export class LayoutTable {
  readonly element: HTMLElement;
  readonly #body = element('tbody');
  readonly #caption = element('caption');
  readonly #pages = element('p', { class: 'pages' });
  readonly #select: (gpa: number, size: number) => void;
  #moment: Moment | undefined;
  #first = 0;
  #shown = false;

  /** `select` is told the range of a row that the user picks. */
  constructor(select: (gpa: number, size: number) => void) {
    this.#select = select;
    const heads = ['GPA', 'Size', 'Slot', 'Now', 'Backed by', 'Flags', 'Since'].map((text) =>
      element('th', { text, attributes: { scope: 'col' } }),
    );
    const table = element('table', {
      children: [this.#caption, element('thead', { children: [element('tr', { children: heads })] }), this.#body],
    });
    this.element = element('div', { class: 'table', children: [this.#pages, table], attributes: { tabindex: '0' } });
  }

  /** Whether it is in view: a table that isn't is not filled. */
  set shown(shown: boolean) {
    this.#shown = shown;
    this.#fill();
  }

  show(moment: Moment): void {
    this.#moment = moment;
    this.#fill();
  }

  #fill(): void {
    const moment = this.#moment;
    if (!this.#shown || moment === undefined) return;
    const rows = this.#rows(moment);
    if (this.#first >= rows.length) this.#first = 0;
    const page = rows.slice(this.#first, this.#first + pageRows);
    this.#caption.textContent = `${moment.history.timeline.spaceName(moment.space)} at transaction ${moment.transaction + 1}`;
    this.#body.replaceChildren(...page.map((row) => this.#row(moment, row)));
    const last = Math.min(rows.length, this.#first + pageRows);
    const turn = (by: number) => {
      this.#first = Math.max(0, this.#first + by);
      this.#fill();
    };
    const [back, on] = [button('Previous', () => turn(-pageRows)), button('Next', () => turn(pageRows))];
    back.disabled = this.#first === 0;
    on.disabled = last === rows.length;
    const range =
      rows.length === 0 ? 'no rows' : `${this.#first + 1} to ${last} of ${rows.length.toLocaleString('en')}`;
    this.#pages.replaceChildren(...(rows.length > pageRows ? [back, ` ${range} `, on] : [range]));
  }

  /** What is mapped now, and what the transaction deleted, by address. */
  #rows({ before, after, marked, history }: Moment): number[] {
    const gone = [...before].filter((row) => marks[marked[row]!] === 'deleted');
    const { gpa } = history.timeline.ranges;
    return [...after, ...gone].sort((a, b) => gpa.at(a) - gpa.at(b));
  }

  #row({ history, marked }: Moment, row: number): HTMLElement {
    const { timeline, blocks } = history;
    const { ranges, names, spaces } = timeline;
    const [gpa, size, host] = [ranges.gpa.at(row), ranges.size.at(row), ranges.host.at(row)];
    const id = ranges.id.at(row);
    const block = history.block(row);
    const backing =
      spaces[ranges.space.at(row)]!.source === 'slots'
        ? `block ${block} + ${hexadecimal(host - blocks.starts[block]!)}`
        : `${names[ranges.name.at(row)]} + ${hexadecimal(host)}`;
    const mark = marks[marked[row]!]!;
    const place = button(hexadecimal(gpa), () => this.#select(gpa, size), `${hexadecimal(gpa)}: show on the map`);
    place.className = 'address';
    const texts = [
      bytes(size),
      id === unnumbered ? 'yes' : id === noSlot ? '–' : `${id}`,
      mark,
      backing,
      flagNames(ranges.flags.at(row)) || '–',
      `transaction ${ranges.born.at(row) + 1}`,
    ];
    const cells = texts.map((text) => element('td', { text }));
    return element('tr', {
      class: mark,
      children: [element('th', { attributes: { scope: 'row' }, children: [place] }), ...cells],
    });
  }
}
