import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import type { Arena } from '../../ts/core/arena.js';
import type { GuestProgram } from '../../ts/kvm/backend.js';
import type { Machine } from '../../ts/kvm/machine.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import { MemoryRegion } from '../../ts/memory/region.js';

export const mebibyte = 0x100000;
export const ramAddress = 0x10000000;
export const codeAddress = 0x70000000;

/** A simulated KVM whose vCPUs don't hear kicks while `deaf`. */
export class DeafBackend extends SimulatedBackend {
  deaf = true;

  constructor(arena: Arena) {
    super(arena, { callMicroseconds: 0, memoryBytes: 16 * mebibyte });
  }

  override kick(index: number): void {
    if (!this.deaf) super.kick(index);
  }
}

/** RAM of 1 MiB that can grow to 2: each change of its size is a commit with a window, as the policy is `exact`. */
export function growingRam(machine: Machine): MemoryRegion {
  const memory = machine.allocate(2 * mebibyte);
  const ram = MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory });
  machine.system.add(ram, ramAddress);
  return ram;
}

/** A guest that never exits by itself: it runs in circles, and on the simulated KVM reads RAM. */
export function spinningGuest(machine: Machine): GuestProgram {
  const memory = machine.allocate(0x1000);
  // jmp to itself
  memory.bytes(0, 2).set([0xeb, 0xfe]);
  machine.system.add(MemoryRegion.ram(machine.map, 'code', 0x1000, { memory }), codeAddress);
  return {
    start: { mode: 'protected', entry: codeAddress },
    steps: [{ kind: 'check', gpa: ramAddress, size: 4, expected: 0 }],
  };
}

/** Waits until `condition`, at most 20 s. */
export async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 20_000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('it did not come to pass within 20 s');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** Another thread that does one of the tasks of other-thread.mjs. */
export class OtherThread {
  readonly flags = new Int32Array(new SharedArrayBuffer(16));
  /** `done`, or the code of the error. */
  readonly result: Promise<string>;

  constructor(task: 'cancel' | 'stay' | 'pass' | 'inhibit', handle: unknown) {
    const workerData = { task, handle, flags: this.flags };
    const worker = new Worker(new URL('other-thread.mjs', import.meta.url), { workerData, execArgv: [] });
    this.result = once(worker, 'message').then(async ([result]) => {
      await worker.terminate();
      return result as string;
    });
  }

  /** Resolves once the thread is at it. */
  async begun(): Promise<void> {
    await until(() => Atomics.load(this.flags, 0) === 1);
  }

  end(): void {
    Atomics.store(this.flags, 1, 1);
    Atomics.notify(this.flags, 1);
  }
}

/** What `action` throws. */
export function errorOf(action: () => unknown): Error & { code?: string } {
  try {
    action();
  } catch (error) {
    return error as Error & { code?: string };
  }
  throw new Error('nothing was thrown');
}
