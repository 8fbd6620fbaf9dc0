/** Runs in a page of the benchmark: measures the map's drawing. Times in milliseconds. */
import { History } from '../../ts/viewer/history.js';
import { momentOf } from '../../ts/viewer/lanes.js';
import { MapView } from '../../ts/viewer/map-view.js';
import { Timeline } from '../../ts/viewer/timeline.js';
import { bigTrace } from './big.js';

const frames = 300;

function quantile(times: readonly number[], share: number): number {
  return [...times].sort((a, b) => a - b)[Math.floor((times.length - 1) * share)]!;
}

function timed(work: () => void): number {
  const start = performance.now();
  work();
  return performance.now() - start;
}

function measure(): object {
  const timeline = new Timeline();
  timeline.push(bigTrace());
  const map = new MapView('map', 'keys');
  document.body.append(map.element);
  /** The drawing call and a forced raster. */
  const draw = (merge: boolean): void => {
    map.draw(merge);
    map.canvas.getContext('2d')!.getImageData(0, 0, 1, 1);
  };
  const open = (merge: boolean): number =>
    timed(() => {
      map.show(momentOf(new History(timeline), 0, timeline.length - 1));
      draw(merge);
    });
  const pan = (merge: boolean): number => {
    map.showAll();
    const times = Array.from({ length: frames }, (_, frame) => {
      const factor = frame % 100 < 50 ? 1.12 : 1 / 1.12;
      map.viewport = map.viewport.zoomed((frame * 37) % 1000, factor).moved(frame % 2 === 0 ? 40 : -25);
      return timed(() => draw(merge));
    });
    return quantile(times, 0.95);
  };
  // Cold, as a user has it.
  const first = open(true);
  const frame = pan(true);
  return { first, frame, unmergedFirst: open(false), unmergedFrame: pan(false) };
}

Object.assign(globalThis, { measure });
