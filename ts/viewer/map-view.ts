import { type Axis, Viewport } from './axis.js';
import { upperBound } from './columns.js';
import { drawLane, type LaneBox, Painter, type Palette } from './draw.js';
import { drawAxis } from './draw-axis.js';
import { descriptions, element, oncePerFrame } from './element.js';
import { attachGestures } from './gestures.js';
import { type Moment, marks } from './lanes.js';
import { paletteOf, sharpContext } from './palette.js';
import { bytes, describeItem, hexadecimal } from './words.js';

/** A range of a lane that the user looks at. */
interface Item {
  readonly lane: number;
  readonly index: number;
}

/** Where the pixels of a map go. */
interface Plan {
  /** Where the axis begins, in pixels from the left of the canvas. */
  readonly gutter: number;
  /** Of the axis, and of the whole canvas: the pixels on the screen, or what is drawn isn't where the pointer finds it. */
  readonly width: number;
  readonly fullWidth: number;
  readonly height: number;
  readonly boxes: readonly LaneBox[];
  readonly titlesAbove: boolean;
}

const axisHeight = 34;
const footHeight = 22;
const narrow = 620;

/**
 * The map of one address space at one moment, drawn on a canvas: lanes over a common axis. Moves and zooms by mouse,
 * touch and keys; tells what lies under the pointer.
 */
export class MapView {
  readonly element: HTMLElement;
  readonly canvas: HTMLCanvasElement;
  /** Objects drawn in each lane the last time. */
  laneOperations: number[] = [];
  readonly #tip: HTMLElement;
  readonly #status: HTMLElement;
  readonly #schedule = oncePerFrame(() => this.draw());
  readonly #observer: ResizeObserver;
  #moment: Moment | undefined;
  #view: Viewport | undefined;
  #palette: Palette | undefined;
  #selected: Item | undefined;
  /** Where arrow keys go on from: the chosen range's lane, or one without ranges. */
  #lane: number | undefined;
  #marker: number | undefined;

  /** `label` names it for those who don't see it; `id` makes ids unique in the document. */
  constructor(label: string, id: string) {
    this.canvas = element('canvas', {
      attributes: {
        tabindex: '0',
        role: 'application',
        'aria-roledescription': 'memory map',
        'aria-label': label,
        'aria-describedby': id,
      },
    });
    this.#tip = element('div', { class: 'tip', attributes: { hidden: '' } });
    this.#status = element('p', { class: 'unseen', attributes: { 'aria-live': 'polite' } });
    const keys = element('p', {
      class: 'unseen',
      text: 'Arrow keys left and right move, plus and minus zoom, 0 shows all. Arrow keys up and down choose a lane, N and P its next and previous range, Z zooms to it. A table of the same ranges is on the tab Table.',
      attributes: { id },
    });
    this.element = element('div', { class: 'map', children: [this.canvas, this.#tip, keys, this.#status] });
    attachGestures(this.canvas, {
      move: (pixels) => this.#change((view) => view.moved(pixels)),
      zoom: (x, factor) => this.#change((view) => view.zoomed(x - this.#plan().gutter, factor)),
      hover: (x, y) => this.#hover(x, y),
      leave: () => this.#hideTip(),
      pick: (x, y) => this.#pick(x, y),
    });
    this.canvas.addEventListener('keydown', (event) => this.#key(event));
    this.#observer = new ResizeObserver(() => {
      if (this.#moment === undefined) return;
      this.#fit(this.#axis);
      this.draw();
    });
    this.#observer.observe(this.element);
  }

  /** Frees what outlives the element. */
  close(): void {
    this.#observer.disconnect();
  }

  /** Shows a moment; what part of the axis is in view stays, unless the address space is another. */
  show(moment: Moment): void {
    const another = this.#moment?.space !== moment.space || this.#moment.history !== moment.history;
    this.#moment = moment;
    this.#selected = undefined;
    this.#lane = undefined;
    if (another) {
      this.#view = undefined;
      this.#marker = undefined;
    }
    this.#fit(this.#axis);
    this.#hideTip();
    this.#schedule();
  }

  get viewport(): Viewport {
    return this.#view!;
  }

  set viewport(view: Viewport) {
    this.#view = view;
    this.#schedule();
  }

  /** Brings [`gpa`, `gpa + size`) into view, with something around it, and marks `gpa`. */
  reveal(gpa: number, size: number, marks = true): void {
    const { width } = this.#plan();
    const close = Viewport.range(this.#axis, width, gpa, Math.max(1, size));
    this.#view = close.placed(gpa, width / 4, close.scale * 2);
    this.#marker = marks ? gpa : undefined;
    this.#schedule();
  }

  /** Shows the whole address space. */
  showAll(): void {
    this.#view = Viewport.whole(this.#axis, this.#plan().width);
    this.#schedule();
  }

  /** After a change of colours. */
  recolour(): void {
    this.#palette = undefined;
    this.#schedule();
  }

  /** Draws now. `merge` false draws every range by itself, for comparison. */
  draw(merge = true): void {
    const moment = this.#moment;
    if (moment === undefined || this.element.clientWidth === 0) return;
    this.#palette ??= paletteOf(this.element);
    const palette = this.#palette;
    const plan = this.#plan();
    const context = sharpContext(this.canvas, plan.fullWidth, plan.height);
    const view = this.#view ?? this.#fit(this.#axis);
    const painter = new Painter(context);
    context.textBaseline = 'middle';
    context.font = '12px ui-monospace, "DejaVu Sans Mono", monospace';
    painter.rectangle(0, 0, plan.fullWidth, plan.height, palette.background);
    context.save();
    context.beginPath();
    context.rect(plan.gutter, 0, plan.width, plan.height);
    context.clip();
    context.translate(plan.gutter, 0);
    for (const box of plan.boxes) painter.rectangle(0, box.y, plan.width, box.height, palette.lane);
    drawAxis(painter, view, 14, plan.height - footHeight, palette);
    this.laneOperations = moment.lanes.map((lane, index) => {
      const before = painter.operations;
      drawLane(painter, view, lane, plan.boxes[index]!, palette, merge);
      return painter.operations - before;
    });
    this.#drawPointers(painter, view, plan, palette);
    context.restore();
    context.font = '600 12px system-ui, sans-serif';
    for (const [index, lane] of moment.lanes.entries()) {
      const box = plan.boxes[index]!;
      const danger = lane.changed.some((item) => marks[lane.marks[item]!] === 'hole');
      const y = plan.titlesAbove ? box.y - 9 : box.y + box.height / 2;
      painter.text(lane.title, plan.titlesAbove ? 4 : 12, y, danger ? palette.danger : palette.muted);
    }
  }

  #drawPointers(painter: Painter, view: Viewport, plan: Plan, palette: Palette): void {
    if (this.#marker !== undefined) {
      const x = Math.round(view.x(this.#marker));
      painter.rectangle(x - 1, axisHeight - 6, 2, plan.height - axisHeight - footHeight + 6, palette.focus);
    }
    if (this.#selected === undefined) return;
    const lane = this.#moment!.lanes[this.#selected.lane]!;
    const box = plan.boxes[this.#selected.lane]!;
    const [from, to] = [view.x(lane.starts[this.#selected.index]!), view.x(lane.ends[this.#selected.index]!)];
    painter.outline(from - 2, box.y - 2, Math.max(4, to - from + 3), box.height + 4, palette.focus);
  }

  get #axis(): Axis {
    return this.#moment!.history.axis(this.#moment!.space);
  }

  /** Carries the view over to `axis` and the present width. */
  #fit(axis: Axis): Viewport {
    const { width } = this.#plan();
    const view = this.#view;
    if (view === undefined) this.#view = Viewport.whole(axis, width);
    else if (view.axis !== axis || view.width !== width) this.#view = view.on(axis, width);
    return this.#view!;
  }

  #plan(): Plan {
    const [width, height] = [Math.max(160, this.element.clientWidth), Math.max(200, this.element.clientHeight)];
    const titlesAbove = width < narrow;
    const gutter = titlesAbove ? 0 : 112;
    const count = this.#moment?.lanes.length ?? 1;
    const room = (height - axisHeight - footHeight) / count;
    const [above, below] = titlesAbove ? [20, 6] : [7, 7];
    return {
      gutter,
      width: width - gutter - (titlesAbove ? 0 : 12),
      fullWidth: width,
      height,
      titlesAbove,
      boxes: Array.from({ length: count }, (_, index) => ({
        y: Math.round(axisHeight + index * room + above),
        height: Math.max(12, Math.min(96, Math.round(room - above - below))),
      })),
    };
  }

  #change(edit: (view: Viewport) => Viewport): void {
    if (this.#view === undefined) return;
    this.#view = edit(this.#view);
    this.#hideTip();
    this.#schedule();
  }

  #key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || this.#moment === undefined) return;
    const { width } = this.#plan();
    const far = event.shiftKey ? width / 2 : width / 10;
    const actions: Record<string, () => void> = {
      ArrowLeft: () => this.#change((view) => view.moved(-far)),
      ArrowRight: () => this.#change((view) => view.moved(far)),
      ArrowUp: () => this.#selectLane(-1),
      ArrowDown: () => this.#selectLane(1),
      '+': () => this.#change((view) => view.zoomed(this.#centre(), 1.5)),
      '=': () => this.#change((view) => view.zoomed(this.#centre(), 1.5)),
      '-': () => this.#change((view) => view.zoomed(this.#centre(), 1 / 1.5)),
      '0': () => this.showAll(),
      Home: () => this.showAll(),
      n: () => this.#selectNext(1),
      p: () => this.#selectNext(-1),
      z: () => this.#zoomToSelected(),
      Escape: () => this.#select(undefined),
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (action === undefined) return;
    action();
    event.preventDefault();
  }

  /** The pixel around which keys zoom: the selected range's middle, if it is in view. */
  #centre(): number {
    const view = this.#view!;
    if (this.#selected !== undefined) {
      const lane = this.#moment!.lanes[this.#selected.lane]!;
      const x = (view.x(lane.starts[this.#selected.index]!) + view.x(lane.ends[this.#selected.index]!)) / 2;
      if (x >= 0 && x <= view.width) return x;
    }
    return view.width / 2;
  }

  #selectLane(step: number): void {
    const { lanes } = this.#moment!;
    const from = this.#lane ?? (step > 0 ? -1 : lanes.length);
    const lane = Math.max(0, Math.min(lanes.length - 1, from + step));
    const { starts, ends } = lanes[lane]!;
    if (starts.length === 0) {
      this.#select(undefined);
      this.#lane = lane;
      this.#status.textContent = `${lanes[lane]!.title}: empty`;
      return;
    }
    this.#select({ lane, index: Math.min(starts.length - 1, upperBound(ends, ends.length, this.#view!.left)) });
  }

  #selectNext(step: number): void {
    if (this.#selected === undefined) {
      this.#selectLane(1);
      return;
    }
    const { lane, index } = this.#selected;
    const last = this.#moment!.lanes[lane]!.starts.length - 1;
    this.#select({ lane, index: Math.max(0, Math.min(last, index + step)) });
  }

  #select(item: Item | undefined): void {
    this.#selected = item;
    this.#lane = item?.lane;
    if (item === undefined) {
      this.#hideTip();
      this.#status.textContent = '';
    } else {
      const lane = this.#moment!.lanes[item.lane]!;
      let view = this.#view!;
      const [from, to] = [view.x(lane.starts[item.index]!), view.x(lane.ends[item.index]!)];
      if (to < 0 || from > view.width) view = view.placed(lane.starts[item.index]!, view.width / 3, view.scale);
      this.#view = view;
      const pairs = describeItem(this.#moment!, lane, item.index);
      this.#status.textContent = `${lane.title}. ${pairs.map(([term, value]) => `${term} ${value}`).join('. ')}`;
      const box = this.#plan().boxes[item.lane]!;
      const x =
        (Math.max(0, view.x(lane.starts[item.index]!)) + Math.min(view.width, view.x(lane.ends[item.index]!))) / 2;
      this.#showTip(lane.title, pairs, x + this.#plan().gutter, box.y + box.height);
    }
    this.#schedule();
  }

  #zoomToSelected(): void {
    if (this.#selected === undefined) return;
    const lane = this.#moment!.lanes[this.#selected.lane]!;
    const start = lane.starts[this.#selected.index]!;
    this.reveal(start, lane.ends[this.#selected.index]! - start, false);
  }

  /** The ranges of a lane under a pixel: more than one where they are too small to be told apart. */
  #under(x: number, y: number): { lane: number; from: number; to: number } | undefined {
    const plan = this.#plan();
    const lane = plan.boxes.findIndex((box) => y >= box.y - 3 && y < box.y + box.height + 3);
    const view = this.#view;
    if (lane < 0 || view === undefined) return undefined;
    const { starts, ends } = this.#moment!.lanes[lane]!;
    const left = view.gpa(Math.max(0, x - plan.gutter - 1));
    const right = view.gpa(Math.min(view.width, x - plan.gutter + 1));
    const from = upperBound(ends, ends.length, left);
    let to = from;
    while (to < starts.length && starts[to]! < right && to < from + 1000) to++;
    return to > from ? { lane, from, to } : undefined;
  }

  #hover(x: number, y: number): void {
    if (this.#moment === undefined) return;
    const under = this.#under(x, y);
    if (under === undefined) {
      if (x < this.#plan().gutter) this.#hideTip();
      else this.#showTip(undefined, this.#describeNothing(x), x, y + 12);
      return;
    }
    const lane = this.#moment.lanes[under.lane]!;
    const several = under.to - under.from > 2;
    const pairs: [string, string][] = several
      ? [
          ['Ranges', `${under.to - under.from} here: zoom in to tell them apart`],
          ['GPA', `${hexadecimal(lane.starts[under.from]!)} – ${hexadecimal(lane.ends[under.to - 1]! - 1)}`],
          ['Size', bytes(lane.ends[under.to - 1]! - lane.starts[under.from]!)],
        ]
      : describeItem(this.#moment, lane, under.from);
    this.#showTip(lane.title, pairs, x, y + 12);
  }

  /** What there is to say of a pixel with no range under it. */
  #describeNothing(x: number): [string, string][] {
    const gpa = Math.floor(this.#view!.gpa(x - this.#plan().gutter));
    const { starts, empty } = this.#axis;
    const index = this.#axis.stretch(gpa);
    if (empty[index] === 0) return [['GPA', hexadecimal(gpa)]];
    const [start, end] = [starts[index]!, starts[index + 1]!];
    return [
      ['GPA', hexadecimal(gpa)],
      ['Never used', `${hexadecimal(start)} – ${hexadecimal(end - 1)}`],
      ['Size', bytes(end - start)],
    ];
  }

  #pick(x: number, y: number): void {
    const under = this.#under(x, y);
    this.#select(under === undefined ? undefined : { lane: under.lane, index: under.from });
  }

  #showTip(title: string | undefined, pairs: readonly (readonly [string, string])[], x: number, y: number): void {
    const heading = title === undefined ? [] : [element('strong', { text: title })];
    this.#tip.replaceChildren(...heading, descriptions(pairs));
    this.#tip.hidden = false;
    const [width, height] = [this.#tip.offsetWidth, this.#tip.offsetHeight];
    const left = Math.max(4, Math.min(this.element.clientWidth - width - 4, x - width / 3));
    const top = y + height + 8 > this.element.clientHeight ? Math.max(4, y - height - 28) : y + 8;
    this.#tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  }

  #hideTip(): void {
    this.#tip.hidden = true;
  }
}
