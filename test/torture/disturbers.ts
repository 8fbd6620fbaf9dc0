import { readdirSync, readlinkSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { Machine } from '../../ts/kvm/machine.js';
import type { WatchedBackend } from './watched-backend.js';

/** Words that the machine's owner shares with the threads beside it. */
export const flags = {
  /** 1 once they are to end. */
  stop: 0,
  /** 1 while nobody may kick or cancel, either of which makes up for a kick that gets lost. */
  calm: 1,
  /** 1 while calls are made in an inhibit window. */
  window: 2,
  /** What the threads have done. */
  ioctls: 3,
  ioctlsInWindow: 4,
  kicks: 5,
  cancels: 6,
  /** From here on, for each vCPU index the arena offset of its line, 0 for none. */
  lines: 16,
} as const;

/** vCPU indices that the thread that kicks knows. */
const mostVcpus = 256;

/** The words that {@link flags} names. */
export function makeFlags(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(4 * (flags.lines + mostVcpus)));
}

/** What a thread of disturber.mjs is given. */
export interface DisturberData {
  readonly task: 'ioctls' | 'kicks' | 'cancels';
  readonly flags: Int32Array;
  readonly names: typeof flags;
  /** Host-virtual addresses of vCPUs' kvm_run pages by index; 0 for simulated ones. */
  readonly runs: BigInt64Array;
  readonly gate: ReturnType<Machine['ioctlGate']>;
  readonly canceller: Machine['canceller'];
  /** Of the virtual machine, -1 for a simulated one. */
  readonly vm: number;
  readonly seed: number;
}

/** The file descriptor of the newest virtual machine of this process: -1 if there is none. */
function newestVm(): number {
  const descriptors = readdirSync('/proc/self/fd').flatMap((name) => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`) === 'anon_inode:kvm-vm' ? Number(name) : [];
    } catch {
      return [];
    }
  });
  return Math.max(-1, ...descriptors);
}

/**
 * Threads beside the owner's and the vCPUs': two that make VM ioctls of their own through the common gate, one that kicks
 * vCPUs at random, and one that cancels commits that wait.
 */
export class Disturbers {
  readonly flags: Int32Array;
  readonly #runs = new BigInt64Array(new SharedArrayBuffer(8 * mostVcpus));
  readonly #workers: Worker[];
  readonly #ends: Promise<unknown>[];
  /** What a thread died of. */
  error: Error | undefined;

  constructor(machine: Machine, words: Int32Array, seed: number) {
    this.flags = words;
    const vm = machine.backend === 'kvm' ? newestVm() : -1;
    this.#workers = (['ioctls', 'ioctls', 'kicks', 'cancels'] as const).map((task, index) => {
      const workerData: DisturberData = {
        task,
        flags: words,
        names: flags,
        runs: this.#runs,
        gate: machine.ioctlGate(),
        canceller: machine.canceller,
        vm,
        seed: seed + index,
      };
      return new Worker(new URL('disturber.mjs', import.meta.url), { workerData, execArgv: [] });
    });
    this.#ends = this.#workers.map(
      (worker) =>
        new Promise((resolve) => {
          worker.on('error', (error) => {
            this.error ??= error as Error;
          });
          worker.on('exit', resolve);
        }),
    );
  }

  /** Tells the thread that kicks which vCPUs there are. */
  follow(machine: Machine, { setups }: WatchedBackend): void {
    for (let index = 0; index < mostVcpus; index++) {
      const vcpu = machine.vcpus.find((one) => one.index === index);
      const setup = setups.get(index);
      Atomics.store(this.#runs, index, BigInt(setup?.kind === 'kvm' ? setup.runAddress : 0));
      Atomics.store(this.flags, flags.lines + index, vcpu?.line ?? 0);
    }
  }

  /** Whether threads must neither kick vCPUs nor cancel commits: a kick that gets lost then has consequences. */
  set calm(calm: boolean) {
    Atomics.store(this.flags, flags.calm, calm ? 1 : 0);
  }

  async end(): Promise<void> {
    Atomics.store(this.flags, flags.stop, 1);
    Atomics.notify(this.flags, flags.stop);
    await Promise.all(this.#ends);
  }
}
