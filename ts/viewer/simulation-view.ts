import workerScript from 'memslots-simulation-worker';
import type { Reshape } from '../replay/reshaper.js';
import type { SlotUpdate, TraceEvent } from '../trace/index.js';
import { button, element } from './element.js';
import { History } from './history.js';
import { momentOf } from './lanes.js';
import { MapView } from './map-view.js';
import type {
  ShownCommit,
  ShownSlot,
  SimulationMode,
  SimulationOrder,
  SimulationReport,
  Updates,
} from './simulation-messages.js';
import { Timeline } from './timeline.js';
import { describeTransaction, isHidden } from './words.js';

const vcpus = 2;

/** What each way of updating is called, and does. */
const ways: readonly { readonly updates: Updates; readonly name: string; readonly text: string }[] = [
  { updates: 'naive', name: 'Naive', text: 'Delete the slot, create the new ones; vCPUs keep running.' },
  { updates: 'atomic', name: 'Atomic', text: 'Hold all vCPUs, delete and create, let them go on.' },
];

/** Changes of the region, each with the one that takes it back. */
const pairs: readonly (readonly [Reshape, string, Reshape, string])[] = [
  ['split', 'Split', 'merge', 'Merge'],
  ['grow', 'Grow', 'shrink', 'Shrink'],
  ['protect', 'Make a part read-only', 'unprotect', 'Make it writable'],
];

/** Guests that read known words while the user changes the memory under them, naively or atomically. */
export class SimulationView {
  readonly element: HTMLElement;
  readonly map = new MapView('Map of the simulated guest’s memory', 'simulation-keys');
  readonly mode: SimulationMode = globalThis.crossOriginIsolated ? 'threads' : 'stepper';
  readonly #sentence = element('p', { class: 'sentence', attributes: { 'aria-live': 'polite' } });
  readonly #cells: Record<Updates, HTMLElement[]>;
  readonly #radios = new Map<Updates, HTMLInputElement>();
  readonly #vcpus = element('p', { class: 'mode' });
  readonly #place = element('p', { class: 'mode' });
  readonly #reshapes: HTMLElement;
  readonly #toggles: readonly HTMLButtonElement[];
  readonly #step: HTMLButtonElement;
  readonly #storm: HTMLButtonElement;
  readonly #play: HTMLButtonElement;
  #worker: Worker | undefined;
  #log: Blob | undefined;
  #playsLog = false;
  #made: readonly Reshape[] = [];
  #shown: string | undefined;

  constructor() {
    this.#cells = { naive: this.#column(), atomic: this.#column() };
    this.#toggles = pairs.map((pair, index) => this.#toggle(pair, index));
    this.#reshapes = element('div', {
      class: 'buttons',
      attributes: { role: 'group', 'aria-label': 'Change the memory' },
      children: this.#toggles,
    });
    this.#nameToggles();
    this.#step = button('Next transaction', () => this.#order({ kind: 'step' }));
    this.#storm = button('Storm of changes', () => {
      const on = this.#storm.getAttribute('aria-pressed') !== 'true';
      this.#order({ kind: 'storm', on });
    });
    this.#storm.setAttribute('aria-pressed', 'false');
    this.#play = button('Play the recording', () => this.#restart(!this.#playsLog));
    const controls = element('div', {
      class: 'controls',
      children: [
        element('p', {
          text: 'Two vCPUs read the same words of their memory, over and over, and know what they should find. Change the memory under them.',
        }),
        this.#choice(),
        this.#reshapes,
        element('div', { class: 'buttons', children: [this.#step, this.#storm, this.#play] }),
        this.#table(),
        this.#vcpus,
        this.#place,
        element('p', { class: 'mode', text: modeText(this.mode) }),
      ],
    });
    this.element = element('section', {
      class: 'simulation',
      attributes: { 'aria-label': 'Simulation' },
      children: [controls, element('div', { class: 'stage', children: [this.#sentence, this.map.element] })],
    });
    this.#showSource();
  }

  /** Offers `log` to be played. */
  set log(log: Blob | undefined) {
    this.#log = log;
    this.#showSource();
  }

  /** Starts the guests, if they don't run. */
  start(): void {
    if (this.#worker === undefined) this.#restart(this.#playsLog);
  }

  /** Ends the guests: they would take a processor each. */
  stop(): void {
    this.#worker?.terminate();
    this.#worker = undefined;
  }

  close(): void {
    this.stop();
    this.map.close();
  }

  #restart(playsLog: boolean): void {
    this.stop();
    this.#playsLog = playsLog && this.#log !== undefined;
    this.#shown = undefined;
    this.#sentence.textContent = 'Starting the guests…';
    // Each machine begins with one region, whole and writable, and naively.
    this.#made = [];
    this.#nameToggles();
    this.#radios.get('naive')!.checked = true;
    const script = URL.createObjectURL(new Blob([workerScript], { type: 'text/javascript' }));
    let worker: Worker;
    try {
      worker = new Worker(script);
    } catch (error) {
      this.#fail(`the simulation can't start: ${error instanceof Error ? error.message : String(error)}`);
      return;
    }
    worker.onmessage = ({ data }: MessageEvent<SimulationReport>) => {
      URL.revokeObjectURL(script);
      if (this.#worker === worker) this.#take(data);
    };
    worker.onerror = (event) => this.#fail(event.message || 'its worker could not be started');
    this.#worker = worker;
    const log = this.#playsLog ? this.#log : undefined;
    this.#order({ kind: 'start', mode: this.mode, vcpus, log });
    this.#showSource();
  }

  #order(order: SimulationOrder): void {
    this.#worker?.postMessage(order);
  }

  #take(report: SimulationReport): void {
    if (report.kind === 'failed') {
      this.#fail(report.message);
      return;
    }
    for (const { updates } of ways) {
      const { commits, windows, reads, wrongValues } = report.figures[updates];
      const numbers = [wrongValues, reads, commits, windows];
      for (const [index, number] of numbers.entries()) {
        this.#cells[updates][index]!.textContent = number.toLocaleString('en');
      }
      this.#cells[updates][0]!.classList.toggle('bad', wrongValues > 0);
    }
    this.#storm.setAttribute('aria-pressed', `${report.storm}`);
    this.#made = report.made;
    // In a storm they would change faster than anybody reads.
    if (!report.storm) this.#nameToggles();
    this.#vcpus.textContent = report.vcpus
      .map(({ reads, wrongValues }, index) => `vCPU ${index}: ${millions(reads)} reads, ${wrongValues} wrong`)
      .join(' · ');
    const { position } = report;
    this.#place.textContent = position === undefined ? '' : `Transaction ${position.next} of ${position.length}`;
    this.element.setAttribute('data-running', this.mode);
    this.#draw(report.commit);
  }

  #draw(commit: ShownCommit): void {
    const key = JSON.stringify(commit);
    if (key === this.#shown) return;
    this.#shown = key;
    const timeline = new Timeline();
    timeline.push(eventsOf(commit));
    const last = timeline.length - 1;
    if (last < 0) return;
    const figures = timeline.figures(last);
    this.map.show(momentOf(new History(timeline), figures.space ?? 0, last));
    this.#sentence.textContent = describeTransaction(figures, false);
    this.#sentence.classList.toggle('bad', figures.holes.length > 0 && !isHidden(figures));
    this.#sentence.classList.toggle('good', isHidden(figures));
  }

  #fail(message: string): void {
    this.stop();
    this.#sentence.textContent = `The simulation stopped: ${message}`;
    this.#sentence.classList.add('bad');
  }

  #showSource(): void {
    this.#play.hidden = this.#log === undefined;
    this.#play.textContent = this.#playsLog ? 'Back to the region' : 'Play the recording';
    this.#reshapes.hidden = this.#playsLog;
    this.#step.hidden = !this.#playsLog;
  }

  #choice(): HTMLElement {
    const options = ways.map(({ updates, name, text }) => {
      const radio = element('input', { attributes: { type: 'radio', name: 'updates', value: updates } });
      radio.addEventListener('change', () => this.#order({ kind: 'updates', updates }));
      radio.checked = updates === 'naive';
      this.#radios.set(updates, radio);
      return element('label', { children: [radio, element('strong', { text: name }), element('span', { text })] });
    });
    return element('fieldset', { children: [element('legend', { text: 'How slots are replaced' }), ...options] });
  }

  /** A button that makes a change, or takes it back if it is in force: a storm makes them too. */
  #toggle([make, , back]: (typeof pairs)[number], index: number): HTMLButtonElement {
    return button('', () => {
      this.#order({ kind: 'make', reshape: this.#isMade(index) ? back : make });
    });
  }

  #isMade(index: number): boolean {
    const [make, , back] = pairs[index]!;
    return this.#made.lastIndexOf(make) > this.#made.lastIndexOf(back);
  }

  #nameToggles(): void {
    for (const [index, [, name, , backName]] of pairs.entries()) {
      this.#toggles[index]!.textContent = this.#isMade(index) ? backName : name;
    }
  }

  #column(): HTMLElement[] {
    return Array.from({ length: 4 }, () => element('td', { text: '0' }));
  }

  #table(): HTMLElement {
    const names = ['Wrong values read', 'Reads', 'Commits', 'Windows: vCPUs held'];
    const head = element('tr', {
      children: [element('td'), ...ways.map(({ name }) => element('th', { text: name, attributes: { scope: 'col' } }))],
    });
    const rows = names.map((text, index) =>
      element('tr', {
        children: [
          element('th', { text, attributes: { scope: 'row' } }),
          ...ways.map(({ updates }) => this.#cells[updates][index]!),
        ],
      }),
    );
    return element('table', {
      class: 'figures',
      children: [element('thead', { children: [head] }), element('tbody', { children: rows })],
    });
  }
}

function modeText(mode: SimulationMode): string {
  return mode === 'threads'
    ? 'Each vCPU is a thread of its own on shared memory, as on a real host. KVM is simulated; single changes are made in slow motion, a storm as fast as on a host.'
    : 'This page isn’t cross-origin isolated (it was opened from a file, say), so it has no shared memory: the vCPUs take turns with KVM in one thread, and step in between its calls.';
}

function millions(count: number): string {
  return count < 1e6 ? count.toLocaleString('en') : `${(count / 1e6).toFixed(1)} million`;
}

/** A commit as two transactions of a trace: what was there, and the change. */
function* eventsOf({ before, calls, window }: ShownCommit): Iterable<TraceEvent> {
  let line = 0;
  const at = (time?: number) => ({ line: ++line, time, thread: undefined });
  const call = (slot: ShownSlot, size: number): SlotUpdate => ({
    kind: 'slot',
    ...at(),
    vm: '',
    addressSpace: slot.addressSpace,
    slot: slot.id,
    flags: slot.flags & 7,
    gpa: slot.gpa,
    size,
    hostAddress: slot.host,
    guestMemfd: undefined,
    result: 0,
  });
  if (before.length > 0) yield { kind: 'commit', ...at(), transaction: 0 };
  for (const slot of before) yield call(slot, slot.size);
  if (calls.length === 0) return;
  yield { kind: 'commit', ...at(), transaction: 1 };
  if (window !== undefined) yield { kind: 'window-begin', ...at(0), transaction: 1 };
  for (const { kind, slot } of calls) yield call(slot, kind === 'delete' ? 0 : slot.size);
  if (window !== undefined) yield { kind: 'window-end', ...at(window), transaction: 1 };
}
