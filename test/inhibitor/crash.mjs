// Loaded into a vCPU's thread before its own code: makes it end inside its gate, where it would leave it, in the way
// that the environment says.
import { isMainThread } from 'node:worker_threads';
import { Gate } from '../../dist/kvm/gate.js';

const ways = {
  throws() {
    throw new Error('boom');
  },
  exits() {
    process.exit(3);
  },
  // Nothing of JavaScript runs any more, as after Worker.terminate() or when the heap is full.
  vanishes() {
    process.reallyExit(3);
  },
};
const way = ways[process.env.MEMSLOTS_TEST_CRASH];
if (!isMainThread && way !== undefined) Gate.prototype.leave = way;
