import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import type { Arena } from '../../ts/core/arena.js';
import { createArena } from '../../ts/core/node.js';
import type { Exit, GuestStep } from '../../ts/kvm/backend.js';
import { gateLineBytes, lineWords } from '../../ts/kvm/gate.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import { enterAccess } from '../../ts/kvm/simulated-readers.js';
import { type SimulatedRunner, type SimulatedSetup, simulatedRunner } from '../../ts/kvm/simulated-vcpu.js';

const mebibyte = 2 ** 20;

interface Bench {
  readonly arena: Arena;
  readonly backend: SimulatedBackend;
  /** One MiB of memory in slot 0 at GPA 0. */
  readonly slot: { slot: number; flags: number; gpa: number; size: number; host: number };
  readonly bytes: Uint8Array;
  vcpu(index: number, steps: readonly GuestStep[]): SimulatedRunner;
  word(index: number, name: keyof typeof lineWords): number;
}

function bench(flags = 0): Bench {
  const arena = createArena(16 * mebibyte);
  const backend = new SimulatedBackend(arena, { callMicroseconds: 0, memoryBytes: 4 * mebibyte });
  const memory = backend.allocate(mebibyte);
  const slot = { slot: 0, flags, gpa: 0, size: mebibyte, host: memory.hostAddress };
  expect(backend.kernel.setUserMemoryRegion(slot)).toBe(0);
  const lines = new Map<number, number>();
  return {
    arena,
    backend,
    slot,
    bytes: memory.bytes(0, mebibyte),
    vcpu(index, steps) {
      const line = arena.allocate(gateLineBytes);
      lines.set(index, line);
      return simulatedRunner(arena, backend.createVcpu(index, line, { steps }), line);
    },
    word: (index, name) => arena.words[(lines.get(index)! >>> 2) + lineWords[name]]!,
  };
}

/** The parts of an exit that mean something, copied. */
function seen({ reason, gpa, size, write, data, detail }: Exit): object {
  return { reason, gpa, size, write, data: [...data.subarray(0, size)], detail };
}

describe('a simulated vCPU', () => {
  test('reads and writes memory directly, and counts reads, wrong values and rounds', () => {
    const { bytes, vcpu, word } = bench();
    bytes.set([1, 2, 3, 4], 0x1000);
    const runner = vcpu(0, [
      { kind: 'check', gpa: 0x1000, size: 4, expected: 0x04030201 },
      { kind: 'check', gpa: 0x1000, size: 2, expected: 7 },
      { kind: 'write', gpa: 0x1001, size: 8, value: 0x1122_3344_5566 },
      { kind: 'halt' },
    ]);
    expect(runner.run().reason).toBe('halt');
    expect([...bytes.subarray(0x1000, 0x100a)]).toEqual([1, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0]);
    expect([word(0, 'guestReads'), word(0, 'guestWrongValues'), word(0, 'guestRounds')]).toEqual([2, 1, 1]);
  });

  test('leaves with MMIO at a hole, and takes what the handler filled in', () => {
    const { vcpu, word } = bench();
    const runner = vcpu(0, [
      { kind: 'check', gpa: mebibyte, size: 4, expected: 0x1234 },
      { kind: 'write', gpa: mebibyte + 8, size: 2, value: 0xbeef },
      { kind: 'halt' },
    ]);
    const exit = runner.run();
    expect(seen(exit)).toEqual({
      reason: 'mmio',
      gpa: mebibyte,
      size: 4,
      write: false,
      data: [0, 0, 0, 0],
      detail: 6,
    });
    exit.data.set([0x34, 0x12]);
    const second = seen(runner.run());
    expect(second).toEqual({
      reason: 'mmio',
      gpa: mebibyte + 8,
      size: 2,
      write: true,
      data: [0xef, 0xbe],
      detail: 6,
    });
    expect(runner.run().reason).toBe('halt');
    expect([word(0, 'guestReads'), word(0, 'guestWrongValues')]).toEqual([1, 0]);
  });

  test('completes a pending MMIO when it is kicked, without running on', () => {
    const { backend, vcpu, word } = bench();
    const runner = vcpu(0, [
      { kind: 'check', gpa: mebibyte, size: 1, expected: 9 },
      { kind: 'write', gpa: 0, size: 1, value: 1 },
    ]);
    runner.run().data[0] = 9;
    backend.kick(0);
    expect(runner.run().reason).toBe('interrupted');
    expect(runner.run().reason).toBe('interrupted');
    expect([word(0, 'guestReads'), word(0, 'guestWrongValues'), runner.position]).toEqual([1, 0, 1]);
    runner.clearKick();
    expect(runner.step()).toBeUndefined();
  });

  test('takes an access that crosses pages apart', () => {
    const { bytes, vcpu, word } = bench();
    bytes.set([0xaa], mebibyte - 1);
    const runner = vcpu(0, [{ kind: 'check', gpa: mebibyte - 1, size: 4, expected: 0x030201aa }, { kind: 'halt' }]);
    const exit = runner.run();
    expect(seen(exit)).toMatchObject({ gpa: mebibyte, size: 3 });
    exit.data.set([1, 2, 3]);
    expect(runner.run().reason).toBe('halt');
    expect(word(0, 'guestWrongValues')).toBe(0);
  });

  test('reads a read-only slot directly, and leaves memory unchanged on a write', () => {
    const { bytes, vcpu, word } = bench(2);
    bytes[5] = 7;
    const runner = vcpu(0, [
      { kind: 'check', gpa: 5, size: 1, expected: 7 },
      { kind: 'fetch', gpa: 5 },
      { kind: 'write', gpa: 5, size: 1, value: 8 },
    ]);
    expect(seen(runner.run())).toMatchObject({ reason: 'mmio', gpa: 5, write: true, data: [8] });
    expect([bytes[5], word(0, 'guestWrongValues')]).toEqual([7, 0]);
  });

  test('dies with an internal error where it fetches in a hole', () => {
    const runner = bench().vcpu(0, [{ kind: 'fetch', gpa: mebibyte }]);
    expect(seen(runner.run())).toMatchObject({ reason: 'internal-error', detail: 1 });
    expect(runner.run().reason).toBe('internal-error');
  });

  test('waits, and can be kicked, while the slot it touches is being deleted', () => {
    const { backend, slot, vcpu } = bench();
    const runner = vcpu(0, [{ kind: 'check', gpa: 0, size: 1, expected: 0 }]);
    const outcomes: unknown[] = [];
    backend.kernel.addHooks({
      published: () => {
        outcomes.push(runner.step()?.reason);
        backend.kick(0);
        outcomes.push(runner.step()?.reason);
        runner.clearKick();
      },
    });
    backend.kernel.setUserMemoryRegion({ ...slot, size: 0 });
    expect(outcomes).toEqual([undefined, 'interrupted', 'mmio', 'interrupted']);
  });

  test('sets dirty bits of logged slots only', () => {
    const { backend, slot, vcpu } = bench(1);
    const bitmap = new Uint8Array(mebibyte / 4096 / 8);
    const runner = vcpu(0, [
      { kind: 'write', gpa: 0x2ffe, size: 4, value: 1 },
      { kind: 'check', gpa: 0x5000, size: 1, expected: 0 },
      { kind: 'halt' },
    ]);
    runner.run();
    expect(backend.getDirtyLog(0, 0, mebibyte / 4096, bitmap)).toBe(0);
    expect(bitmap).toEqual(new Uint8Array(bitmap.length).fill(0b1100, 0, 1));
    expect(backend.getDirtyLog(0, 0, mebibyte / 4096, bitmap)).toBe(0);
    expect(bitmap).toEqual(new Uint8Array(bitmap.length));
    backend.kernel.setUserMemoryRegion({ ...slot, flags: 0 });
    runner.run();
    expect(backend.getDirtyLog(0, 0, mebibyte / 4096, bitmap)).toBe(-2);
  });
});

/** A worker that runs one vCPU, answering MMIO reads with ones, until it is kicked. */
const workerSource = `
const { workerData, parentPort } = require('node:worker_threads');
(async () => {
  const { Arena } = await import(workerData.dist + 'core/arena.js');
  const { simulatedRunner } = await import(workerData.dist + 'kvm/simulated-vcpu.js');
  const runner = simulatedRunner(Arena.attach(workerData.handle), workerData.setup, workerData.line);
  parentPort.postMessage('ready');
  let mmio = 0;
  for (let exit = runner.run(); exit.reason !== 'interrupted'; exit = runner.run()) {
    mmio++;
    exit.data.fill(0xff);
  }
  parentPort.postMessage(mmio);
})();`;

describe('a simulated vCPU in a worker', () => {
  test('is waited for until it has finished the access it was at', async () => {
    const { arena, backend, slot } = bench();
    const setup = backend.createVcpu(0, arena.allocate(gateLineBytes), { steps: [] }) as SimulatedSetup;
    const word = setup.scratch >>> 2;
    enterAccess(arena.words, word);
    const worker = new Worker(
      `const { words, word, dist } = require('node:worker_threads').workerData;
      const pause = new Int32Array(new SharedArrayBuffer(4));
      import(dist + 'kvm/simulated-readers.js').then(({ leaveAccess }) => {
        Atomics.wait(pause, 0, 0, 50);
        leaveAccess(words, word);
      });`,
      { eval: true, workerData: { words: arena.words, word, dist: new URL('../../dist/', import.meta.url).href } },
    );
    // Deleting a slot swaps twice: it must not have returned before the worker left.
    expect(backend.kernel.setUserMemoryRegion({ ...slot, size: 0 })).toBe(0);
    expect(Atomics.load(arena.words, word) & 1).toBe(0);
    await worker.terminate();
  });

  test('finds the holes of a naive update, and none in changes of flags', async () => {
    const arena = createArena(16 * mebibyte);
    const backend = new SimulatedBackend(arena, { memoryBytes: mebibyte });
    const slot = { slot: 0, flags: 0, gpa: 0, size: mebibyte, host: backend.allocate(mebibyte).hostAddress };
    backend.kernel.setUserMemoryRegion(slot);

    const run = async (update: () => void): Promise<{ mmio: number; wrong: number; reads: number }> => {
      const line = arena.allocate(gateLineBytes);
      const steps: GuestStep[] = [{ kind: 'check', gpa: 0x1000, size: 4, expected: 0 }];
      const setup = backend.createVcpu(0, line, { steps });
      const dist = new URL('../../dist/', import.meta.url).href;
      const worker = new Worker(workerSource, {
        eval: true,
        workerData: { dist, handle: arena.handle(), setup, line },
      });
      const message = (): Promise<number> =>
        new Promise((resolve, reject) => {
          worker.once('message', resolve);
          worker.once('error', reject);
        });
      const word = (name: keyof typeof lineWords): number => Atomics.load(arena.words, (line >>> 2) + lineWords[name]);
      await message();
      while (word('guestReads') === 0) await new Promise((resolve) => setTimeout(resolve, 1));
      for (let i = 0; i < 500; i++) update();
      const finished = message();
      backend.kick(0);
      const mmio = await finished;
      await worker.terminate();
      backend.destroyVcpu(0);
      return { mmio, wrong: word('guestWrongValues'), reads: word('guestReads') };
    };

    const naive = await run(() => {
      backend.kernel.setUserMemoryRegion({ ...slot, size: 0 });
      backend.kernel.setUserMemoryRegion(slot);
    });
    expect(naive.mmio).toBeGreaterThan(0);
    expect(naive.wrong).toBe(naive.mmio);
    const flags = await run(() => {
      backend.kernel.setUserMemoryRegion({ ...slot, flags: 1 });
      backend.kernel.setUserMemoryRegion(slot);
    });
    expect(flags).toMatchObject({ mmio: 0, wrong: 0 });
    expect(flags.reads).toBeGreaterThan(0);
  });
});
