// A userfaultfd handler on a thread of its own: takes one fault, and brings its page on its cue.
import { workerData } from 'node:worker_threads';
import { controlWords } from '../../ts/kvm/gate.js';
import { describeThread } from '../../ts/kvm/thread-state.js';
import { type Cue, type HandlerData, handlerWords, Userfault } from './userfault.js';

/** For how long the cue holds, at least, before the page comes, in milliseconds. */
const hesitation = 50;
/** After this long, in milliseconds, the page comes whatever happens: nobody is to hang. */
const patience = 10_000;

const { fd, word, cue, words, owner, canceller } = workerData as HandlerData;
const control = new Int32Array(canceller.memory.buffer);
const cues: Record<Cue, () => boolean> = {
  told: () => Atomics.load(words, handlerWords.told) === 1,
  waiting: () => Atomics.load(control, (canceller.control >>> 2) + controlWords.attempt) !== 0,
  'in a call': () => describeThread(owner).includes(', state D '),
};

/** Waits until `condition`. False if that took too long, or the handler is to end. */
function until(condition: () => boolean): boolean {
  const deadline = Date.now() + patience;
  while (Date.now() < deadline && Atomics.load(words, handlerWords.told) !== 2) {
    if (condition()) return true;
    sleep(1);
  }
  return false;
}

function sleep(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

const userfault = new Userfault(fd);
let address: number | undefined;
const takeFault = () => {
  address = userfault.take();
  return address !== undefined;
};
if (until(takeFault)) {
  Atomics.store(words, handlerWords.taken, 1);
  if (until(cues[cue])) {
    sleep(hesitation);
    if (cues[cue]()) Atomics.store(words, handlerWords.onCue, 1);
  }
  Atomics.store(words, handlerWords.brought, 1);
  userfault.bring(address!, word);
}
