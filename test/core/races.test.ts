import { once } from 'node:events';
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import type { MemoryRange } from '../../ts/core/arena.js';
import { Inhibitor } from '../../ts/kvm/inhibitor.js';
import { openCore } from './core.js';
import { batch, changesOf, pages, type ReaderCounts, type ReaderData, words } from './races.js';

/** How a layout is published. The two naive ways are controls: readers must notice. */
type Way = 'atomically' | 'deletes first' | 'outside a window';

/** One layout in so many is published in a window. */
const windowEvery = 20;
const layouts = 2_000;
/** Batches of look-ups that must have met a change; until they have, up to so many times the layouts are published. */
const leastMet = 100;
const patience = 50;

/** Publishes layouts while more workers than processors look up and pass the gate. What these saw, in all. */
async function race(way: Way): Promise<ReaderCounts & { published: number; met: number; readers: number }> {
  const { arena, core } = openCore(4 << 20);
  const inhibitor = new Inhibitor(arena);
  const map = arena.allocate(core.map_size(pages));
  core.map_init(map, pages);
  const [deleteList, addList] = [0, 1].map(() => arena.allocate(pages * arena.layout.range.bytes)) as [number, number];
  const shared = new Int32Array(new SharedArrayBuffer(4 * Object.keys(words).length + 4));

  const write = (list: number, ranges: readonly MemoryRange[]): number => {
    for (const [index, range] of ranges.entries()) arena.writeRange(list + index * arena.layout.range.bytes, range);
    return ranges.length;
  };
  const apply = (deleteCount: number, addCount: number) =>
    mustBeZero(core.map_apply(map, deleteList, deleteCount, addList, addCount));
  const publish = (number: number): void => {
    const { deletes, adds } = changesOf(number);
    const [deleteCount, addCount] = [write(deleteList, deletes), write(addList, adds)];
    Atomics.store(shared, words.begun, number);
    if (way === 'deletes first') {
      apply(deleteCount, 0);
      apply(0, addCount);
    } else {
      apply(deleteCount, addCount);
    }
    Atomics.store(shared, words.ended, number);
  };
  const publishWitnessed = (number: number): void => {
    shared[words.witness] = number;
    publish(number);
    shared[words.witness + 1] = number;
  };

  publish(0);
  const readers = availableParallelism() + 2;
  const ended = Array.from({ length: readers }, async (_, index) => {
    const workerData: ReaderData = {
      module: new URL('races-thread.ts', import.meta.url).href,
      arena: arena.handle(),
      control: inhibitor.control,
      line: inhibitor.commonLine,
      map,
      out: arena.allocate(batch * arena.layout.range.bytes),
      words: shared,
      seed: index + 1,
    };
    const worker = new Worker(new URL('../thread.mjs', import.meta.url), { workerData, execArgv: [] });
    const [counts] = await once(worker, 'message');
    await worker.terminate();
    return counts as ReaderCounts;
  });
  const all = Promise.all(ended);
  const at = (word: number) => Atomics.load(shared, word);
  const started = async () => {
    while (at(words.ready) < readers && at(words.enough) === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  let published = 0;
  try {
    // Whoever can't start says so.
    await Promise.race([started(), all]);
    const isTooLittle = () => published < layouts || (at(words.met) < leastMet && published < patience * layouts);
    while (isTooLittle() && at(words.wrong) === 0) {
      const number = ++published;
      if (number % windowEvery !== 0) publish(number);
      else if (way === 'outside a window') publishWitnessed(number);
      else inhibitor.window(() => publishWitnessed(number));
    }
  } finally {
    Atomics.store(shared, words.enough, 1);
  }
  const sum = (name: keyof ReaderCounts, counts: readonly ReaderCounts[]) =>
    counts.reduce((total, one) => total + one[name], 0);
  const counts = await all;
  return {
    readers,
    published,
    met: at(words.met),
    lookUps: sum('lookUps', counts),
    checked: sum('checked', counts),
    holes: sum('holes', counts),
    entered: sum('entered', counts),
    wrongAnswers: sum('wrongAnswers', counts),
    wrongWitnesses: sum('wrongWitnesses', counts),
  };
}

describe('more workers than processors that read a map and pass a gate while layouts are published', () => {
  it('see each address as some layout has it, whole, and nothing change inside the gate', async () => {
    const seen = await race('atomically');
    expect(seen).toMatchObject({ wrongAnswers: 0, wrongWitnesses: 0 });
    // Little contention would show little.
    expect(seen.met).toBeGreaterThanOrEqual(leastMet);
    expect(Math.min(seen.holes, seen.entered)).toBeGreaterThan(0);
  });

  it('notice when a layout is published in two steps (control)', async () => {
    expect((await race('deletes first')).wrongAnswers).toBeGreaterThan(0);
  });

  it('notice when a layout is published outside a window (control)', async () => {
    expect(await race('outside a window')).toMatchObject({
      wrongAnswers: 0,
      wrongWitnesses: expect.toSatisfy((count) => count > 0),
    });
  });
});

function mustBeZero(result: number): void {
  if (result !== 0) throw new Error(`publishing a layout failed: ${result}`);
}
