/**
 * The browser view of kvm-memslots, for other pages: a recording of a guest's memory slots, drawn.
 *
 * ```js
 * import { mount, readTrace } from 'kvm-memslots/viewer';
 * const viewer = mount(document.querySelector('#slots'), readTrace(file.stream()), { name: file.name });
 * await viewer.ready;
 * ```
 *
 * @module
 */
import { App, type TraceInput } from './app.js';

export { readTrace, Trace, type TraceEvent } from '../trace/index.js';
export type { TraceInput } from './app.js';

/** A viewer in a page. */
export interface MountedViewer {
  /** Resolves when the trace is read to its end and drawn. */
  readonly ready: Promise<void>;
  /** Takes the viewer out of the page and frees what it holds. */
  close(): void;
}

/**
 * Shows `trace` in `element`, which must have a height and no shadow tree of another's making. `name` is shown beside it. A trace that
 * can't be read is told in the element, as far as it went.
 */
export function mount(
  element: HTMLElement,
  trace: TraceInput,
  options: { readonly name?: string } = {},
): MountedViewer {
  const app = new App(element);
  const ready = app.open(trace, options.name ?? 'Trace').then(() => app.markReady());
  return { ready, close: () => app.close() };
}
