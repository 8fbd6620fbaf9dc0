import { type Analysis, type Trace, type TraceEvent, toJson } from '../trace/index.js';
import { button, element } from './element.js';
import { Findings } from './findings.js';
import { History } from './history.js';
import { type Moment, momentOf } from './lanes.js';
import { LookUp, parseAddress } from './look-up.js';
import { MapView } from './map-view.js';
import { type Hole, noSlot } from './records.js';
import { Strip } from './strip.js';
import { LayoutTable } from './table.js';
import { Tabs } from './tabs.js';
import { Timeline } from './timeline.js';
import { bytes, counted, describeTransaction, duration, hexadecimal, isHidden } from './words.js';

/** Milliseconds between two transactions while playing. */
const playInterval = 350;
/** Transactions after which a live source's past is forgotten. */
const mostLive = 20_000;
/** Milliseconds that new events of a live source may wait to be shown. */
const liveInterval = 200;

/** A recording on a page: the map, the scrubber, the findings, the table and the search. */
export class RecordingView {
  readonly element: HTMLElement;
  readonly map = new MapView('Map of guest-physical memory', 'recording-keys');
  readonly strip: Strip;
  readonly #findings: Findings;
  readonly #table: LayoutTable;
  readonly #spaces = element('select', { attributes: { 'aria-label': 'Address space' } });
  readonly #sentence = element('p', { class: 'sentence', attributes: { 'aria-live': 'polite' } });
  readonly #place = element('p', { class: 'place' });
  readonly #answer = element('output', { class: 'answer' });
  readonly #search = element('input', {
    attributes: {
      type: 'search',
      placeholder: 'e.g. fd000000',
      'aria-label': 'Address to look up',
      spellcheck: 'false',
    },
  });
  readonly #play: HTMLButtonElement;
  /** What moves through time: of no use while there is one moment. */
  readonly #time: readonly HTMLElement[];
  #timeline = new Timeline();
  #history = new History(this.#timeline);
  #lookUp = new LookUp(this.#timeline);
  #analysis: Analysis | undefined;
  /** The address space that was chosen, by the user or by a transaction that changed it. */
  #space: number | undefined;
  #position = -1;
  #moment: Moment | undefined;
  /** The address that the answer is about. */
  #asked: number | undefined;
  /** What a live source has told since the past was forgotten last, as lines of this library's JSON. */
  #told: string[] = [];
  #playing: ReturnType<typeof setInterval> | undefined;
  #refreshing: ReturnType<typeof setTimeout> | undefined;

  constructor() {
    this.strip = new Strip((transaction) => this.select(transaction));
    this.#findings = new Findings((transaction, hole) => {
      this.select(transaction);
      const worst = hole ?? largest(this.#timeline.holesOf(transaction));
      if (worst !== undefined) this.map.reveal(worst.gpa, worst.size, false);
    });
    this.#table = new LayoutTable((gpa, size) => this.map.reveal(gpa, size));
    this.#play = button('Play', () => this.#togglePlay());
    this.#time = [
      button('◂', () => this.select(this.#position - 1), 'Previous transaction'),
      this.#play,
      button('▸', () => this.select(this.#position + 1), 'Next transaction'),
      button('◂ hole', () => this.#toHole(-1), 'Previous hole'),
      button('hole ▸', () => this.#toHole(1), 'Next hole'),
      this.strip.element,
    ];
    const transport = element('div', {
      class: 'transport',
      attributes: { role: 'group', 'aria-label': 'Time' },
      children: [...this.#time.slice(0, -1), this.#place],
    });
    this.#spaces.addEventListener('change', () => {
      this.#space = Number(this.#spaces.value);
      this.#show();
    });
    const form = element('form', {
      class: 'search',
      attributes: { role: 'search' },
      children: [this.#search, element('button', { text: 'Who backs it?', attributes: { type: 'submit' } })],
    });
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      void this.search(this.#search.value);
    });
    const tools = element('div', {
      class: 'tools',
      children: [this.#spaces, form, this.#answer, button('Show all', () => this.map.showAll())],
    });
    const explanations = legend();
    const tabs = new Tabs('Details', 'details', [
      { name: 'Findings', panel: this.#findings.element },
      {
        name: 'Table',
        panel: this.#table.element,
        onShow: () => {
          this.#table.shown = true;
        },
        onHide: () => {
          this.#table.shown = false;
        },
      },
      { name: 'Legend', panel: explanations },
    ]);
    const side = element('aside', {
      class: 'side',
      attributes: { 'aria-label': 'Details' },
      children: [tabs.element, this.#findings.element, this.#table.element, explanations],
    });
    this.element = element('section', {
      class: 'recording',
      attributes: { 'aria-label': 'Recording' },
      children: [
        element('div', {
          class: 'stage',
          children: [tools, this.#sentence, this.map.element, transport, this.strip.element],
        }),
        side,
      ],
    });
  }

  get timeline(): Timeline {
    return this.#timeline;
  }

  /** The transaction in view, −1 before the first event. */
  get position(): number {
    return this.#position;
  }

  /** Forgets everything, for another recording. */
  clear(): void {
    this.#stop();
    this.#timeline = new Timeline();
    this.#history = new History(this.#timeline);
    this.#lookUp = new LookUp(this.#timeline);
    this.#analysis = undefined;
    this.#moment = undefined;
    this.#position = -1;
    this.#space = undefined;
    this.#asked = undefined;
    this.#answer.textContent = '';
    this.#told = [];
  }

  /** Takes events; what they change is shown by {@link refresh}. */
  take(events: Iterable<TraceEvent>): void {
    this.#timeline.push(events);
  }

  /** Makes the findings, once there are no more events; `trace` tells what was read. */
  finish(trace: Pick<Trace, 'format' | 'counts'>): void {
    this.#analysis = this.#timeline.finish(trace);
  }

  /** As {@link take}, for events that come as they happen: shows them soon, and stays at the newest if it was there. */
  takeLive(events: Iterable<TraceEvent>): void {
    const follows = this.#position >= this.#timeline.length - 1;
    const lines = (list: Iterable<TraceEvent>) => Array.from(list, (event) => `${toJson(event)}\n`).join('');
    if (this.#timeline.length > mostLive) {
      const present = [...this.#timeline.present()];
      this.clear();
      this.take(present);
      this.#told.push(lines(present));
    }
    this.take(events);
    this.#told.push(lines(events));
    this.#refreshing ??= setTimeout(() => {
      this.#refreshing = undefined;
      this.refresh(follows ? this.#timeline.length - 1 : this.#position);
    }, liveInterval);
  }

  /** What {@link takeLive} was given, as far back as it is shown, as a log that can be opened again. */
  get liveLog(): Blob | undefined {
    return this.#told.length === 0 ? undefined : new Blob(this.#told);
  }

  /** Shows transaction `position`, of what has been taken so far. */
  refresh(position: number): void {
    const timeline = this.#timeline;
    const names = timeline.spaces.map((_, index) => timeline.spaceName(index));
    // Not for nothing: somebody may be choosing from them.
    if (names.join('\0') !== [...this.#spaces.options].map(({ text }) => text).join('\0')) {
      const options = names.map((text, index) => element('option', { text, attributes: { value: `${index}` } }));
      this.#spaces.replaceChildren(...options);
    }
    this.#spaces.hidden = names.length < 2;
    for (const part of this.#time) part.hidden = timeline.length < 2;
    this.#position = -1;
    if (timeline.length > 0) this.select(position);
    else this.#findings.show(timeline, this.#analysis, -1);
  }

  /** Goes to a transaction, the nearest if there is none of that index; and to the address space that it changed. */
  select(transaction: number): void {
    const position = Math.max(0, Math.min(this.#timeline.length - 1, transaction));
    if (this.#timeline.length === 0 || position === this.#position) return;
    this.#position = position;
    this.#space = this.#timeline.figures(position).space ?? this.#space;
    this.#show();
  }

  #show(): void {
    const timeline = this.#timeline;
    const space = this.#space ?? mainSpace(timeline);
    this.#spaces.value = `${space}`;
    const figures = timeline.figures(this.#position);
    const moment = momentOf(this.#history, space, this.#position);
    this.#moment = moment;
    this.map.show(moment);
    this.#table.show(moment);
    this.#findings.show(timeline, this.#analysis, this.#position);
    const isSnapshot = timeline.spaces[space]!.source === 'snapshots';
    const sentence = describeTransaction(figures, isSnapshot);
    this.#sentence.textContent = sentence;
    this.#sentence.classList.toggle('bad', figures.holes.length > 0 && !isHidden(figures));
    this.#sentence.classList.toggle('good', isHidden(figures));
    const time = figures.time === undefined ? `line ${figures.line}` : duration(figures.time);
    const position = `${(this.#position + 1).toLocaleString('en')} of ${timeline.length.toLocaleString('en')}`;
    const torn = figures.tornDown > 0 ? ` · ${bytes(figures.tornDown)} torn down` : '';
    this.#place.textContent = `${position} · ${time} · ${counted(figures.slots, 'slot')}${torn}`;
    this.strip.show(timeline, this.#position, `${position}, ${time}. ${sentence}`);
    if (this.#asked !== undefined) void this.#tellWho(this.#asked).catch((error) => this.#tellError(error));
  }

  /** Looks an address up in the present layout, and shows where it is. Resolves to the answer in words. */
  async search(text: string): Promise<string> {
    if (this.#moment === undefined) return '';
    this.#asked = undefined;
    try {
      const gpa = parseAddress(text);
      this.#asked = gpa;
      const row = await this.#tellWho(gpa);
      const { ranges } = this.#timeline;
      if (row === undefined) this.map.reveal(gpa, 4096);
      else this.map.reveal(gpa, Math.min(ranges.size.at(row), ranges.gpa.at(row) + ranges.size.at(row) - gpa));
    } catch (error) {
      this.#tellError(error);
    }
    return this.#answer.textContent ?? '';
  }

  /** Says who backs `gpa` at the moment in view: the answer stays true while time goes on. Resolves to its row. */
  async #tellWho(gpa: number): Promise<number | undefined> {
    const moment = this.#moment!;
    const { row, next } = await this.#lookUp.find(moment.after, gpa);
    if (moment === this.#moment && gpa === this.#asked) {
      this.#answer.textContent = row === undefined ? this.#nobody(gpa, next) : this.#who(moment, gpa, row);
    }
    return row;
  }

  #tellError(error: unknown): void {
    this.#answer.textContent = error instanceof Error ? error.message : String(error);
  }

  #who(moment: Moment, gpa: number, row: number): string {
    const { ranges, names, spaces } = this.#timeline;
    const { blocks } = this.#history;
    const offset = gpa - ranges.gpa.at(row);
    const extent = `${hexadecimal(ranges.gpa.at(row))} – ${hexadecimal(ranges.gpa.at(row) + ranges.size.at(row) - 1)}`;
    const host = ranges.host.at(row) + offset;
    if (spaces[moment.space]!.source === 'snapshots') {
      const slot = ranges.id.at(row) === noSlot ? 'no slot: an access is MMIO' : 'a KVM slot backs it';
      return `${hexadecimal(gpa)}: ${names[ranges.name.at(row)]} + ${hexadecimal(host)} (${extent}); ${slot}`;
    }
    const block = this.#history.block(row);
    const backing = `host block ${block} + ${hexadecimal(host - blocks.starts[block]!)}`;
    return `${hexadecimal(gpa)}: slot ${ranges.id.at(row)} (${extent}) + ${hexadecimal(offset)}, ${backing}`;
  }

  #nobody(gpa: number, next: number | undefined): string {
    const { ranges } = this.#timeline;
    const above =
      next === undefined ? 'nothing lies above' : `the next range above is at ${hexadecimal(ranges.gpa.at(next))}`;
    return `${hexadecimal(gpa)}: nobody backs it, an access is MMIO; ${above}`;
  }

  #toHole(step: number): void {
    const { holes } = this.#timeline.transactions;
    const count = this.#timeline.holes.gpa.length;
    const firstHole = (index: number) => (index < holes.length ? holes.at(index) : count);
    for (let index = this.#position + step; index >= 0 && index < this.#timeline.length; index += step) {
      if (firstHole(index + 1) === firstHole(index)) continue;
      this.select(index);
      return;
    }
  }

  #togglePlay(): void {
    if (this.#playing !== undefined) {
      this.#stop();
      return;
    }
    if (this.#position >= this.#timeline.length - 1) this.select(0);
    this.#play.textContent = 'Pause';
    this.#playing = setInterval(() => {
      this.select(this.#position + 1);
      if (this.#position >= this.#timeline.length - 1) this.#stop();
    }, playInterval);
  }

  #stop(): void {
    clearInterval(this.#playing);
    this.#playing = undefined;
    this.#play.textContent = 'Play';
  }

  /** After a change of colours. */
  recolour(): void {
    this.map.recolour();
    this.strip.recolour();
  }

  close(): void {
    this.#stop();
    clearTimeout(this.#refreshing);
    this.map.close();
    this.strip.close();
  }
}

/** What is shown of a snapshot until something else is chosen: its address spaces come in any order. */
function mainSpace({ spaces }: Timeline): number {
  return Math.max(
    0,
    spaces.findIndex(({ name }) => name === 'memory'),
  );
}

function largest(holes: readonly Hole[]): Hole | undefined {
  return [...holes].sort((a, b) => b.size - a.size)[0];
}

function legend(): HTMLElement {
  const entries = [
    ['kept', 'Kept: the slot is there before and after'],
    ['deleted', 'Deleted: crossed out, with a dashed outline'],
    ['created', 'Created: a thick outline and +'],
    ['changed', 'Changed flags: a dotted outline and ~; the guest notices nothing'],
    ['hole', 'Hole: mapped before and after, but not in between'],
    ['held', 'The same, but all vCPUs were held meanwhile: none could see it'],
    ['unused', 'Never used: shown narrower than it is'],
  ] as const;
  const items = entries.map(([name, text]) =>
    element('li', { children: [element('span', { class: `swatch ${name}` }), element('span', { text })] }),
  );
  const notes = [
    'The same colour is the same host memory (in snapshots: the same region). A block is a stretch of host memory that slots show, whole or in parts. A bar along the lower edge of a range means read-only.',
    'Along time: the line is the slots in use, bars are bytes torn down (their logarithm), and the marks below are holes, or windows in which vCPUs were held.',
    'Widths grow with the logarithm of a range’s size and with how long it was in use, so that small ranges can be seen beside large ones. Addresses and borders are exact at every zoom.',
    'KVM can’t resize, split or merge a slot. It is deleted, and new ones are created. Between the two calls a running vCPU finds no memory there: it reads garbage, or dies. Atomic updates keep all vCPUs out of the guest meanwhile.',
  ];
  return element('div', {
    class: 'legend',
    // It may scroll, and has nothing else in it to go to.
    attributes: { tabindex: '0' },
    children: [element('ul', { children: items }), ...notes.map((text) => element('p', { text }))],
  });
}
