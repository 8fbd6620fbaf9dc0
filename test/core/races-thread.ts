// A reader of races.test.ts.
import { parentPort, workerData } from 'node:worker_threads';
import { Arena } from '../../ts/core/arena.js';
import { chooseCore } from '../../ts/core/node.js';
import { Gate } from '../../ts/kvm/gate.js';
import { batch, isAnswer, mix, pageBytes, pages, type ReaderCounts, type ReaderData, words } from './races.js';

const data = workerData as ReaderData;
const shared = data.words;
const arena = Arena.attach(data.arena);
const core = chooseCore(arena, 'wasm');
const gate = new Gate(arena, data.control, data.line);
const counts: ReaderCounts = { lookUps: 0, checked: 0, holes: 0, entered: 0, wrongAnswers: 0, wrongWitnesses: 0 };
/** One quiet batch in so many is checked, and every one that met a change. */
const checkEvery = 64;
/** Where this reader looks, again and again. Made before, as are the constants here: look-ups are to take most of the time. */
const gpas = Float64Array.from({ length: 64 * batch }, (_, index) => mix(data.seed, index) % (pages * pageBytes));
const results = new Int32Array(batch);
const { map, out } = data;
const { map_lookup: find } = core;
const rangeBytes = arena.layout.range.bytes;
const { begun, ended } = words;
const size = batch;
let batches = 0;

function lookUp(): void {
  const first = (batches++ * size) % gpas.length;
  const from = Atomics.load(shared, ended);
  for (let index = 0; index < size; index++) results[index] = find(map, gpas[first + index]!, out + index * rangeBytes);
  if (Atomics.load(shared, ended) !== from) Atomics.add(shared, words.met, 1);
  const to = Atomics.load(shared, begun);
  counts.lookUps += size;
  if (to === from && batches % checkEvery !== 0) return;
  for (const [index, result] of results.entries()) {
    const found = result === 0 ? arena.readRange(out + index * rangeBytes) : undefined;
    if (found === undefined) counts.holes++;
    if (!isAnswer(from, to, Math.floor(gpas[first + index]! / pageBytes), found)) sawWrong('wrongAnswers');
    counts.checked++;
  }
}

function sawWrong(what: 'wrongAnswers' | 'wrongWitnesses'): void {
  counts[what]++;
  Atomics.add(shared, words.wrong, 1);
}

function passGate(): void {
  gate.enter();
  const before = shared[words.witness];
  lookUp();
  if (shared[words.witness] !== before || shared[words.witness + 1] !== before) sawWrong('wrongWitnesses');
  gate.leave();
  counts.entered++;
}

Atomics.add(shared, words.ready, 1);
while (Atomics.load(shared, words.enough) === 0) {
  for (let turn = 0; turn < 32; turn++) lookUp();
  passGate();
}
parentPort!.postMessage(counts);
