// A thread whose every access to the words of the gates is a step that steps.ts allows, one thread at a time. It runs
// the built code as it is: what is replaced are the functions of Atomics, the two that C has of a gate, and the clock.
import { parentPort, workerData } from 'node:worker_threads';
import { Arena } from '../../dist/core/arena.js';
import { createArena } from '../../dist/core/node.js';
import { Gate, gateLineBytes, lineWords } from '../../dist/kvm/gate.js';
import { Inhibitor } from '../../dist/kvm/inhibitor.js';
import { VcpuLoop } from '../../dist/kvm/vcpu.js';

const { role, turns, base, fault } = workerData;
const real = Object.fromEntries(Object.getOwnPropertyNames(Atomics).map((name) => [name, Atomics[name]]));
let words;
let stepping = false;
const answers = ['ok', 'timed-out'];

/** Asks for a step and sleeps until it is allowed. The answer. */
function step(operation, index = 0, value = 0, timeout = -1) {
  turns[base + 1] = operation;
  turns[base + 2] = index;
  turns[base + 3] = value;
  turns[base + 4] = timeout;
  real.store(turns, base, 1);
  real.notify(turns, base);
  while (real.load(turns, base) === 1) real.wait(turns, base, 1);
  return turns[base + 5];
}

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
];
const numberOf = Object.fromEntries(operations.map((name, index) => [name, index]));

for (const name of ['load', 'store', 'add', 'sub', 'and', 'or', 'compareExchange']) {
  Atomics[name] = (array, index, ...rest) => {
    if (stepping && array === words) step(numberOf[name], index, rest[0]);
    return real[name](array, index, ...rest);
  };
}
Atomics.notify = (array, index, count) => {
  if (!stepping || array !== words) return real.notify(array, index, count);
  return step(numberOf.notify, index);
};
Atomics.wait = (array, index, value, timeout = Infinity) => {
  if (!stepping || array !== words) return real.wait(array, index, value, timeout);
  const microseconds = Math.min(timeout, 1e6) * 1000;
  step(numberOf.wait, index, value, microseconds);
  if (real.load(words, index) !== value) return 'not-equal';
  return answers[step(numberOf.asleep, index, value, microseconds)];
};
Object.defineProperty(performance, 'now', { value: () => real.load(turns, 0) / 1000 });

/** Faults, to see that the schedules find them. */
const faults = {
  'the gate is not read again': () => {
    Gate.prototype.startRun = () => true;
  },
  'leaving tells nobody': () => {
    const { leave } = Gate.prototype;
    const { notify } = Atomics;
    Gate.prototype.leave = function () {
      Atomics.notify = () => 0;
      leave.call(this);
      Atomics.notify = notify;
    };
  },
  'opening wakes nobody': () => {
    const { notify } = Atomics;
    Atomics.notify = (array, index, count) => (index === control >>> 2 ? 0 : notify(array, index, count));
  },
};

/** The two steps that C takes (csrc/gate.c), in steps that can be allowed. */
function stepThrough({ wasm }) {
  wasm.gate_enter = (gate, keepOut) => {
    for (;;) {
      const word = Atomics.load(words, gate >>> 2);
      if (word & keepOut) return 0;
      if (Atomics.compareExchange(words, gate >>> 2, word, word + 1) === word) return 1;
    }
  };
  wasm.gate_leave = (gate) => Atomics.sub(words, gate >>> 2, 1);
}

let control;

function vcpu({ arena: handle, line, map, scratch, index, ...rest }) {
  const arena = Arena.attach(handle);
  words = arena.words;
  stepThrough(arena);
  control = rest.control;
  const interrupted = { reason: 'interrupted', gpa: 0, size: 0, write: false, data: new Uint8Array(8), detail: 0 };
  const immediateExit = (line >>> 2) + lineWords.immediateExit;
  const runner = {
    clearKick() {
      if (fault === 'immediate_exit is cleared without being seen') return;
      Atomics.store(words, immediateExit, 0);
    },
    run() {
      // The kernel's look at immediate_exit, and what follows, are the scheduler's.
      if (step(numberOf.enterKernel, index, immediateExit) === 0) step(numberOf.guest, index);
      return interrupted;
    },
    access() {},
    close() {},
  };
  if (fault === 'immediate_exit is cleared too late') {
    const { run } = runner;
    runner.clearKick = () => {};
    runner.run = () => {
      Atomics.store(words, immediateExit, 0);
      return run();
    };
  }
  return () => new VcpuLoop(arena, runner, { control, line, map, scratch, send() {} }).run();
}

function caller({ arena: handle, commonLine, ...rest }) {
  const arena = Arena.attach(handle);
  words = arena.words;
  stepThrough(arena);
  control = rest.control;
  const gate = new Gate(arena, control, commonLine);
  return ({ calls }) => {
    for (let call = 0; call < calls; call++) {
      gate.enter();
      step(numberOf.ioctl);
      gate.leave();
    }
  };
}

function owner({ vcpus, callers }) {
  const arena = createArena(4 * 1024 * 1024);
  words = arena.words;
  const inhibitor = new Inhibitor(arena, { fairnessAge: 0.002 });
  control = inhibitor.control;
  const map = arena.allocate(1024);
  const lines = Array.from({ length: vcpus }, () => inhibitor.allocateLine());
  const common = { control, commonLine: inhibitor.commonLine, map };
  parentPort.postMessage({
    memory: arena.memory,
    lines,
    ...common,
    vcpus: lines.map((line, index) => ({
      ...common,
      arena: arena.handle(),
      line,
      index,
      scratch: arena.allocate(gateLineBytes),
    })),
    callers: Array.from({ length: callers }, () => ({ ...common, arena: arena.handle() })),
  });
  const kickOf = (index) => () => {
    Atomics.store(words, (lines[index] >>> 2) + lineWords.immediateExit, 1);
    step(numberOf.signal, index);
  };
  const actions = {
    window: () =>
      inhibitor.window(() => {
        step(numberOf.work);
        step(numberOf.worked);
      }),
    pause: (index) => inhibitor.pause(index),
    resume: (index) => inhibitor.resume(index),
    close: (index) => {
      inhibitor.close(index);
      step(numberOf.awaitEnd, index);
    },
  };
  return ({ script }) => {
    lines.forEach((_, index) => {
      inhibitor.remove(index);
    });
    // Vcpus run from the start: nothing of adding them is a step.
    stepping = false;
    lines.forEach((line, index) => {
      inhibitor.add(index, line, { kick: kickOf(index) });
      real.store(words, line >>> 2, 0);
    });
    real.store(turns, 1, 1);
    real.notify(turns, 1);
    stepping = true;
    for (const [action, index] of script) actions[action](index);
  };
}

let run;
parentPort.on('message', (message) => {
  if (run === undefined) {
    run = { vcpu, caller, owner }[role](message);
    faults[fault]?.();
    if (role !== 'owner') parentPort.postMessage('ready');
    return;
  }
  let text = '';
  stepping = true;
  try {
    if (role !== 'owner') while (real.load(turns, 1) === 0) real.wait(turns, 1, 0);
    run(message);
  } catch (error) {
    text = `${role}: ${error.code ?? error.stack}: ${error.message}`;
  }
  stepping = false;
  const bytes = new TextEncoder().encode(text).subarray(0, 1000);
  const room = new Uint8Array(turns.buffer, (base + 8) * 4, 1024);
  room.fill(0);
  room.set(bytes);
  real.store(turns, base, 2);
  real.notify(turns, base);
});
