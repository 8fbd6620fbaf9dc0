import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Action, race, randomly, type Schedule, SteppedThreads } from './steps.js';

const close0: Action = ['close', 0];
const scripts: Readonly<Record<string, readonly Action[]>> = {
  'two windows': [['window'], ['window'], close0],
  'a pause, a window while paused, a resumption': [['pause', 0], ['window'], ['resume', 0], ['window'], close0],
  'a teardown': [close0],
  'a pause, then a teardown': [['pause', 0], close0],
  'many windows back to back': [['window'], ['window'], ['window'], ['window'], ['window'], close0],
};

/** Long enough for each thread to get through all of its steps; races beyond a thread's last step are no races. */
const vcpuSteps = 24;
const ownerSteps = 40;

/** Every race of the vCPU's and the owner's steps: one is held before its n-th step until the other's m-th. */
function* races(): Iterable<{ readonly name: string; readonly schedule: Schedule }> {
  for (const [held, most, others] of [
    [1, vcpuSteps, ownerSteps],
    [0, ownerSteps, vcpuSteps],
  ] as const) {
    for (let at = 0; at < most; at++) {
      for (let until = 1; until < others; until += 2) {
        yield {
          name: `thread ${held} held before step ${at} for ${until} steps`,
          schedule: race(held, at, until),
        };
      }
    }
  }
}

describe('a vCPU and its owner, step by step', () => {
  let threads: SteppedThreads;
  beforeAll(async () => {
    threads = await SteppedThreads.start(1, 0);
  });
  afterAll(() => threads.stop());

  it.each(Object.entries(scripts))('get through %s whichever is held at whichever step', (_, script) => {
    const seen = new Set<string>();
    for (const { name, schedule } of races()) {
      try {
        for (const { thread, name: step } of threads.run(script, 0, schedule)) seen.add(`${thread} ${step}`);
      } catch (error) {
        throw new Error(`with ${name}: ${(error as Error).message}`);
      }
    }
    // The races were at the steps that matter, not beside them.
    for (const step of ['1 compareExchange gate', '1 store immediateExit', '1 enterKernel', '1 sub gate', '0 signal']) {
      expect(
        [...seen].filter((taken) => taken.startsWith(step)),
        step,
      ).not.toEqual([]);
    }
  });
});

describe('two vCPUs, two other callers and their owner', () => {
  let threads: SteppedThreads;
  beforeAll(async () => {
    threads = await SteppedThreads.start(2, 2);
  });
  afterAll(() => threads.stop());

  it.each([
    ['windows', [['window'], ['window'], ['window'], ['close', 0], ['window'], ['close', 1]]],
    [
      'windows and pauses',
      [['window'], ['pause', 1], ['window'], ['resume', 1], ['window'], ['close', 1], ['close', 0]],
    ],
  ] as [string, Action[]][])('get through %s in random order, with spurious wake-ups', (_, script) => {
    for (let seed = 1; seed <= 60; seed++) {
      try {
        threads.run(script, 3, randomly(seed));
      } catch (error) {
        throw new Error(`with seed ${seed}: ${(error as Error).message}`);
      }
    }
  });
});

describe('a fault is found by the races (the control)', () => {
  it.each([
    ['the gate is not read again', 'two windows', /stuck|inside a window/],
    ['leaving tells nobody', 'two windows', /stuck/],
    ['immediate_exit is cleared too late', 'a teardown', /stuck/],
    ['immediate_exit is cleared without being seen', 'two windows', /no end/],
  ])('%s', async (fault, script, why) => {
    const threads = await SteppedThreads.start(1, 0, fault);
    try {
      expect(() => {
        for (const { schedule } of races()) threads.run(scripts[script]!, 0, schedule);
      }).toThrow(why);
    } finally {
      await threads.stop();
    }
  });
});
