// A thread beside the owner's and the vCPUs', for the tests: does one thing with the built package.
import { parentPort, workerData } from 'node:worker_threads';
import { Arena } from '../../dist/core/arena.js';
import { Gate } from '../../dist/kvm/gate.js';
import { cancelCommit, Inhibitor } from '../../dist/kvm/inhibitor.js';

const { task, handle, flags } = workerData;

/** flags[0]: 1 once this thread has begun. flags[1]: set to 1 to have it end. flags[2]: what it counted. */
const begun = () => {
  Atomics.store(flags, 0, 1);
  Atomics.notify(flags, 0);
};
const tasks = {
  /** Cancels the first commit that waits. */
  cancel() {
    begun();
    while (!cancelCommit(handle)) Atomics.wait(flags, 1, 0, 1);
  },
  /** Stays inside the common gate. */
  stay() {
    const gate = Gate.attach(handle);
    gate.enter();
    begun();
    while (Atomics.load(flags, 1) === 0) Atomics.wait(flags, 1, 0);
    gate.leave();
  },
  /** Goes in and out. */
  pass() {
    const gate = Gate.attach(handle);
    begun();
    while (Atomics.load(flags, 1) === 0) {
      gate.enter();
      Atomics.add(flags, 2, 1);
      gate.leave();
    }
  },
  inhibit() {
    new Inhibitor(Arena.attach(handle.arena));
  },
};
try {
  tasks[task]();
  parentPort.postMessage('done');
} catch (error) {
  parentPort.postMessage(error.code);
}
