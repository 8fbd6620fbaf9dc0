/** Runs in a page of bench.ts: measures the map's drawing, and hands the figures to `report`. */
import { History } from '../../dist/viewer/history.js';
import { momentOf } from '../../dist/viewer/lanes.js';
import { MapView } from '../../dist/viewer/map-view.js';
import { Timeline } from '../../dist/viewer/timeline.js';
import { bigCommits, bigTrace } from './big.js';

const frames = 300;

function quantile(times: readonly number[], share: number): number {
  return [...times].sort((a, b) => a - b)[Math.floor((times.length - 1) * share)]!;
}

function measure(): object {
  const events = [...bigTrace()];
  const timeline = new Timeline();
  let start = performance.now();
  timeline.push(events);
  const reading = performance.now() - start;

  const map = new MapView('map', 'keys');
  document.body.append(map.element);
  const pixel = () => map.canvas.getContext('2d')!.getImageData(0, 0, 1, 1).data[0];
  start = performance.now();
  const history = new History(timeline);
  map.show(momentOf(history, 0, timeline.length - 1));
  map.draw();
  pixel();
  const first = performance.now() - start;

  /** Milliseconds a frame: the drawing call and a forced raster. */
  const pan = (merge: boolean): number[] => {
    map.showAll();
    return Array.from({ length: frames }, (_, frame) => {
      const factor = frame % 100 < 50 ? 1.12 : 1 / 1.12;
      map.viewport = map.viewport.zoomed((frame * 37) % 1000, factor).moved(frame % 2 === 0 ? 40 : -25);
      const begin = performance.now();
      map.draw(merge);
      pixel();
      return performance.now() - begin;
    });
  };
  pan(true);
  const merged = pan(true);
  const unmerged = pan(false);

  const scrubs = Array.from({ length: 100 }, (_, index) => {
    const transaction = (index * 6007) % bigCommits;
    const begin = performance.now();
    map.show(momentOf(history, 0, transaction));
    map.draw();
    pixel();
    return performance.now() - begin;
  });
  return {
    reading,
    first,
    frame: { p50: quantile(merged, 0.5), p95: quantile(merged, 0.95) },
    unmergedFrame: { p50: quantile(unmerged, 0.5), p95: quantile(unmerged, 0.95) },
    scrub: { p50: quantile(scrubs, 0.5), p95: quantile(scrubs, 0.95) },
  };
}

Object.assign(globalThis, { measure });
