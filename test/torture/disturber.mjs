// A thread of disturbers.ts: one task, for ever, with the built package. Counts what it does in the shared words.
import { workerData } from 'node:worker_threads';
import { Arena } from '../../dist/core/arena.js';
import { loadNativeLibrary } from '../../dist/core/native.js';
import { Gate, lineWords } from '../../dist/kvm/gate.js';
import { cancelCommit } from '../../dist/kvm/inhibitor.js';
import { randomFrom } from '../../dist/testing/random.js';

const { task, flags, names, runs, gate: handle, canceller, vm, seed } = workerData;
const KVM_CHECK_EXTENSION = 0xae03;
const KVM_CAP_NR_MEMSLOTS = 10;
const random = randomFrom(seed);
const arena = Arena.attach(handle.arena);
const words = arena.words;
const ended = () => Atomics.load(flags, names.stop) === 1;
const isCalm = () => Atomics.load(flags, names.calm) === 1;
/** Sleeps for up to `most` milliseconds. */
const pause = (most) => Atomics.wait(flags, names.stop, 0, random() * most);
const count = (name) => Atomics.add(flags, names[name], 1);

const tasks = {
  ioctls() {
    const gate = Gate.attach(handle);
    const ioctl =
      vm < 0 ? () => {} : loadNativeLibrary().function('int32_t memslots_ioctl(int32_t, uint32_t, uintptr_t)');
    const look = () => {
      if (Atomics.load(flags, names.window) === 1) count('ioctlsInWindow');
    };
    while (!ended()) {
      gate.enter();
      look();
      ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
      look();
      gate.leave();
      count('ioctls');
      // Now and then one comes right after the other.
      if (random() < 0.7) pause(1);
    }
  },
  kicks() {
    const kick = vm < 0 ? undefined : loadNativeLibrary().function('int32_t memslots_kvm_kick(uintptr_t, int32_t)');
    while (!ended()) {
      pause(2);
      for (let index = 0; index < runs.length; index++) {
        const line = Atomics.load(flags, names.lines + index);
        if (line === 0 || random() < 0.5 || isCalm()) continue;
        const run = Number(Atomics.load(runs, index));
        if (kick === undefined) Atomics.store(words, (line >>> 2) + lineWords.immediateExit, 1);
        else if (run !== 0) kick(run, Atomics.load(words, (line >>> 2) + lineWords.thread));
        count('kicks');
      }
    }
  },
  cancels() {
    while (!ended()) {
      pause(random() < 0.1 ? 100 : 1);
      if (!isCalm() && cancelCommit(canceller)) count('cancels');
    }
  },
};
tasks[task]();
