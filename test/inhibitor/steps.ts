import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { controlWords, lineWords } from '../../ts/kvm/gate.js';
import { randomFrom } from '../../ts/testing/random.js';

/** What a thread wants to do next. The order is that of stepped-thread.mjs. */
const operations = [
  'load',
  'store',
  'add',
  'sub',
  'and',
  'or',
  'compareExchange',
  'wait',
  'notify',
  'asleep',
  'enterKernel',
  'guest',
  'signal',
  'work',
  'worked',
  'ioctl',
  'awaitEnd',
] as const;
type Operation = (typeof operations)[number];

/** One thing that the owner does. */
export type Action = readonly ['window'] | readonly ['pause' | 'resume' | 'close', number];

/** A step that a thread is about to take, by its name: the operation, and the word it is on. */
export interface Step {
  /** 0 is the owner, then vCPUs, then other callers. */
  readonly thread: number;
  readonly name: string;
  /** Whether it comes by itself: a wait's end without a notify, a guest's exit without a kick. */
  readonly unprompted: boolean;
}

/** Picks the next step from those that are possible. */
export type Schedule = (steps: readonly Step[], taken: number) => Step;

const wordsPerThread = 8 + 256;
const firstThread = 8;
/** Steps after which a run is taken for endless. */
const mostSteps = 4_000;

interface Shared {
  readonly memory: WebAssembly.Memory;
  readonly lines: readonly number[];
  readonly control: number;
  readonly commonLine: number;
  readonly vcpus: readonly object[];
  readonly callers: readonly object[];
}

/**
 * An owner, vCPUs and other callers in threads of their own, running the real gates and inhibitor, of which one at a
 * time takes one step at a time: which, a {@link Schedule} says. The kernel's part (immediate_exit, signals, a guest
 * that stays until it's kicked) is played here. Waits and notifies are too, with their exact rules.
 */
export class SteppedThreads {
  readonly #turns = new Int32Array(new SharedArrayBuffer(4 * (firstThread + 8 * wordsPerThread)));
  readonly #workers: Worker[] = [];
  readonly #vcpus: number;
  #shared!: Shared;
  #names = new Map<number, string>();

  private constructor(vcpus: number) {
    this.#vcpus = vcpus;
  }

  /** Starts the threads. `fault` names one of stepped-thread.mjs, which all of them but the owner have. */
  static async start(vcpus: number, callers: number, fault?: string): Promise<SteppedThreads> {
    const threads = new SteppedThreads(vcpus);
    const roles = ['owner', ...Array(vcpus).fill('vcpu'), ...Array(callers).fill('caller')];
    for (const [thread, role] of roles.entries()) {
      const workerData = { role, turns: threads.#turns, base: threads.#base(thread), fault };
      threads.#workers.push(new Worker(new URL('stepped-thread.mjs', import.meta.url), { workerData, execArgv: [] }));
    }
    const owner = threads.#workers[0]!;
    owner.postMessage({ vcpus, callers });
    [threads.#shared] = (await once(owner, 'message')) as [Shared];
    const shared = threads.#shared;
    for (const [index, data] of [...shared.vcpus, ...shared.callers].entries()) {
      const worker = threads.#workers[index + 1]!;
      worker.postMessage(data);
      await once(worker, 'message');
    }
    for (const [name, word] of Object.entries(controlWords)) threads.#names.set((shared.control >>> 2) + word, name);
    threads.#names.set(shared.commonLine >>> 2, 'common gate');
    for (const line of shared.lines) {
      for (const [name, word] of Object.entries(lineWords)) threads.#names.set((line >>> 2) + word, name);
    }
    return threads;
  }

  async stop(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }

  /**
   * Lets the owner carry out `script`, each other caller make `calls` ioctls, and vCPUs run until they are closed. The
   * steps taken. Throws if the protocol didn't hold: an ioctl inside a window, somebody left asleep or inside, an error
   * of a thread's. After that there is only {@link stop}.
   */
  run(script: readonly Action[], calls: number, schedule: Schedule): Step[] {
    const turns = this.#turns;
    const count = this.#workers.length;
    turns.fill(0);
    for (const worker of this.#workers) worker.postMessage({ script, calls });
    const run = new Run(this.#shared, this.#vcpus);
    const taken: Step[] = [];
    const fail = (why: string): never => {
      const last = taken.slice(-40).map(({ thread, name }) => `${thread} ${name}`);
      throw new Error(`${why}; the last steps, by thread: ${last.join(', ')}`);
    };
    for (;;) {
      for (let thread = 0; thread < count; thread++) this.#awaitRequest(thread);
      const done = (thread: number) => Atomics.load(turns, this.#base(thread)) === 2;
      for (let thread = 0; thread < count; thread++) {
        const text = done(thread) ? this.#text(thread) : '';
        if (text !== '') fail(text);
      }
      const all = Array.from({ length: count }, (_, thread) => thread);
      if (all.every(done)) return taken;
      const steps: Step[] = [];
      for (const thread of all) {
        if (done(thread)) continue;
        const [, operation, index, , timeout] = turns.subarray(this.#base(thread), this.#base(thread) + 5);
        const kind = operations[operation!]!;
        const name = `${kind} ${this.#names.get(index!) ?? index}`;
        const possible = run.possible(thread, kind, index!, timeout!, done);
        if (possible !== 'no') steps.push({ thread, name, unprompted: possible === 'unprompted' });
      }
      if (steps.every(({ unprompted }) => unprompted)) {
        fail(`stuck: ${all.filter((thread) => !done(thread)).map((thread) => this.#describe(thread))}`);
      }
      if (taken.length === mostSteps) fail(`no end after ${mostSteps} steps`);
      const step = schedule(steps, taken.length);
      taken.push(step);
      const base = this.#base(step.thread);
      const violation = run.take(step, operations[turns[base + 1]!]!, turns.subarray(base, base + 6));
      if (violation !== undefined) fail(violation);
      // The clock: every step takes a microsecond.
      Atomics.add(turns, 0, 1);
      Atomics.store(turns, base, 0);
      Atomics.notify(turns, base);
    }
  }

  #base(thread: number): number {
    return firstThread + thread * wordsPerThread;
  }

  #awaitRequest(thread: number): void {
    const base = this.#base(thread);
    while (Atomics.load(this.#turns, base) === 0) {
      if (Atomics.wait(this.#turns, base, 0, 20_000) === 'timed-out') throw new Error(`thread ${thread} hangs`);
    }
  }

  #text(thread: number): string {
    const bytes = new Uint8Array(this.#turns.buffer, (this.#base(thread) + 8) * 4, 1024);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  #describe(thread: number): string {
    const base = this.#base(thread);
    return `thread ${thread} at ${operations[this.#turns[base + 1]!]} ${this.#names.get(this.#turns[base + 2]!) ?? ''}`;
  }
}

/** What the kernel and the platform know in one run. */
class Run {
  readonly #words: Int32Array;
  readonly #inRun: boolean[];
  readonly #signalled: boolean[];
  readonly #asleep = new Map<number, { index: number; woken: boolean }>();
  #windowOpen = false;

  constructor(shared: Shared, vcpus: number) {
    this.#words = new Int32Array(shared.memory.buffer as ArrayBufferLike);
    this.#inRun = Array(vcpus).fill(false);
    this.#signalled = Array(vcpus).fill(false);
  }

  possible(
    thread: number,
    kind: Operation,
    index: number,
    timeout: number,
    done: (thread: number) => boolean,
  ): 'no' | 'yes' | 'unprompted' {
    if (kind === 'asleep') {
      const sleep = this.#asleep.get(thread) ?? { index, woken: false };
      this.#asleep.set(thread, sleep);
      // The owner's slice for the starving is over sooner or later; the other deadlines mustn't be needed.
      return sleep.woken || (timeout >= 0 && timeout <= 1000) ? 'yes' : 'unprompted';
    }
    if (kind === 'guest') return this.#signalled[index] ? 'yes' : 'unprompted';
    if (kind === 'awaitEnd') return done(index + 1) ? 'yes' : 'no';
    return 'yes';
  }

  /** Does the step's effect that isn't the thread's own; sets the answer. What is wrong, if anything. */
  take(step: Step, kind: Operation, turn: Int32Array): string | undefined {
    const [, , index, value] = turn as unknown as [number, number, number, number];
    turn[5] = 0;
    if (kind === 'asleep') {
      turn[5] = this.#asleep.get(step.thread)!.woken || step.unprompted ? 0 : 1;
      this.#asleep.delete(step.thread);
    } else if (kind === 'notify') {
      for (const sleep of this.#asleep.values()) if (sleep.index === index) sleep.woken = true;
    } else if (kind === 'enterKernel') {
      turn[5] = Atomics.load(this.#words, value);
      this.#inRun[index] = turn[5] === 0;
      if (this.#windowOpen && this.#inRun[index]) return `vCPU ${index} ran inside a window`;
    } else if (kind === 'guest') {
      this.#inRun[index] = false;
      this.#signalled[index] = false;
    } else if (kind === 'signal') {
      // Outside the kernel the handler runs, and that was it.
      if (this.#inRun[index]) this.#signalled[index] = true;
    } else if (kind === 'work') {
      this.#windowOpen = true;
      if (this.#inRun.includes(true)) return `a window opened with vCPU ${this.#inRun.indexOf(true)} in KVM_RUN`;
    } else if (kind === 'worked') {
      this.#windowOpen = false;
    } else if (kind === 'ioctl' && this.#windowOpen) {
      return 'a VM ioctl ran inside a window';
    }
    return undefined;
  }
}

/** Any step, with unprompted ones seldom. */
export function randomly(seed: number): Schedule {
  const random = randomFrom(seed);
  return (steps) => {
    const prompted = steps.filter(({ unprompted }) => !unprompted);
    const from = prompted.length > 0 && random() < 0.95 ? prompted : steps;
    return from[Math.floor(random() * from.length)]!;
  };
}

/**
 * Provokes one race: `held` is stopped before its `at`-th step and stays there while the others do all they can, up to
 * their `until`-th step; then it goes on alone for as long as it can.
 */
export function race(held: number, at: number, until: number): Schedule {
  let heldSteps = 0;
  let otherSteps = 0;
  const choose = (steps: readonly Step[]): Step => {
    const prompted = steps.filter(({ unprompted }) => !unprompted);
    const pick = (mine: boolean) => prompted.find(({ thread }) => (thread === held) === mine);
    const holding = heldSteps === at && otherSteps < until;
    return pick(!holding) ?? pick(holding) ?? steps[0]!;
  };
  return (steps) => {
    const step = choose(steps);
    if (step.thread === held) heldSteps++;
    else if (heldSteps === at) otherSteps++;
    return step;
  };
}
