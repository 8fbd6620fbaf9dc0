import styleText from 'memslots-style';
import { Trace, type TraceEvent } from '../trace/index.js';
import { element } from './element.js';
import { RecordingView } from './recording-view.js';
import { SimulationView } from './simulation-view.js';
import { Tabs } from './tabs.js';
import { counted } from './words.js';

/** What {@link App} can be given to show: a trace being read, or its events. */
export type TraceInput = AsyncIterable<TraceEvent> | Iterable<TraceEvent>;

/** The viewer in an element: a recording and the simulation, each on a tab. */
export class App {
  readonly recording = new RecordingView();
  readonly simulation = new SimulationView();
  /** Where a page may put buttons of its own. */
  readonly actions = element('div', { class: 'actions' });
  /** Shown while there is nothing to see. */
  readonly empty = element('div', { class: 'empty' });
  readonly root: HTMLElement;
  readonly tabs: Tabs;
  readonly #host: HTMLElement;
  readonly #about = element('p', { class: 'about' });
  readonly #notice = element('p', { class: 'notice', attributes: { role: 'alert', hidden: '' } });
  readonly #scheme = matchMedia('(prefers-color-scheme: light)');
  readonly #recolour = () => {
    this.recording.recolour();
    this.simulation.map.recolour();
  };
  /** Counts what was opened, so that what was opened before gives up. */
  #opened = 0;

  constructor(host: HTMLElement) {
    this.#host = host;
    const shadow = host.shadowRoot ?? host.attachShadow({ mode: 'open' });
    const style = new CSSStyleSheet();
    style.replaceSync(styleText);
    shadow.adoptedStyleSheets = [style];
    const recordingPanel = element('div', { children: [this.empty, this.recording.element] });
    this.tabs = new Tabs('Views', 'view', [
      { name: 'Recording', panel: recordingPanel },
      {
        name: 'Try it',
        panel: this.simulation.element,
        onShow: () => this.simulation.start(),
        onHide: () => this.simulation.stop(),
      },
    ]);
    const header = element('header', {
      children: [element('h1', { text: 'Memory slots' }), this.tabs.element, this.#about, this.actions],
    });
    this.root = element('div', {
      class: 'app',
      children: [header, element('main', { children: [recordingPanel, this.simulation.element, this.#notice] })],
    });
    this.#show(false);
    shadow.append(this.root);
    this.#scheme.addEventListener('change', this.#recolour);
  }

  /** Reads a trace to its end and shows it. Resolves when it is drawn; a trace that can't be read is told on the page. */
  async open(trace: TraceInput, name: string): Promise<void> {
    const turn = ++this.#opened;
    this.recording.clear();
    this.#notice.hidden = true;
    this.#about.textContent = `Reading ${name}…`;
    try {
      if (trace instanceof Trace) {
        for await (const batch of trace.batches()) this.recording.take(batch);
      } else for await (const event of trace) this.recording.take([event]);
    } catch (error) {
      if (turn === this.#opened) this.tell(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    }
    if (turn !== this.#opened) return;
    if (trace instanceof Trace) this.recording.finish(trace);
    this.#describe(name, trace instanceof Trace ? trace.format : undefined);
  }

  /**
   * Follows a trace that goes on: shows events as they come. Resolves when it ends, to whether it is still what is shown:
   * false if something else was opened meanwhile. `begun` is called when there is something to see.
   */
  async follow(trace: Trace, name: string, begun: () => void): Promise<boolean> {
    const turn = ++this.#opened;
    this.recording.clear();
    this.#about.textContent = `${name}: waiting for the first event`;
    try {
      for await (const batch of trace.batches()) {
        if (turn !== this.#opened) return false;
        this.recording.takeLive(batch);
        this.#about.textContent = `${name}: live`;
        this.#show(true);
        begun();
      }
    } catch (error) {
      if (turn === this.#opened) this.tell(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    }
    if (turn === this.#opened) this.#about.textContent = `${name}: ended`;
    return turn === this.#opened;
  }

  #describe(name: string, format: string | undefined): void {
    const { timeline } = this.recording;
    const isEmpty = timeline.length === 0;
    const count = counted(timeline.length, 'transaction');
    this.#about.textContent = isEmpty
      ? `${name}: no memory slots in it`
      : [name, ...(format === undefined ? [] : [format]), count].join(' · ');
    this.#show(!isEmpty);
    // Where the first hole is: that is what people come for.
    this.recording.refresh(timeline.holes.gpa.length > 0 ? timeline.holes.transaction.at(0) : 0);
  }

  #show(recording: boolean): void {
    this.recording.element.hidden = !recording;
    this.empty.hidden = recording;
  }

  /** Tells something that went wrong. */
  tell(message: string): void {
    this.#notice.textContent = message;
    this.#notice.hidden = false;
  }

  /** A mark in the document for whoever waits until all is drawn. */
  markReady(): void {
    requestAnimationFrame(() => requestAnimationFrame(() => this.#host.setAttribute('data-ready', '')));
  }

  close(): void {
    this.#opened++;
    this.#scheme.removeEventListener('change', this.#recolour);
    this.recording.close();
    this.simulation.close();
    this.root.remove();
    this.#host.removeAttribute('data-ready');
  }
}
