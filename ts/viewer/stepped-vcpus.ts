import type { Exit, GuestProgram, VcpuRunner } from '../kvm/backend.js';
import { gateBits, gateLineBytes } from '../kvm/gate.js';
import { type SimulatedRunner, simulatedRunner } from '../kvm/simulated-vcpu.js';
import { VcpuLoop } from '../kvm/vcpu.js';
import type { SimulatedMachine } from './simulated-machine.js';

const keepOut = gateBits.shut | gateBits.closed | gateBits.paused;
/** Steps of a guest in one stay in KVM_RUN. */
const stepsPerTurn = 12;

/**
 * vCPUs that share the thread of the machine's owner: they take turns while nothing else is to do, and between the
 * instants at which the kernel shows other slots, which is when they would find a hole. Their gates are respected as by
 * threads: a vCPU whose gate is shut takes no turn. Needs no shared memory, and the same turns give the same result.
 */
export class SteppedVcpus {
  readonly #machine: SimulatedMachine;
  readonly #vcpus: { readonly line: number; readonly loop: VcpuLoop }[] = [];

  constructor(machine: SimulatedMachine) {
    this.#machine = machine;
    machine.backend.kernel.addHooks({ published: () => this.turn() });
  }

  /** Adds a vCPU, running. */
  add(index: number, line: number, guest: GuestProgram): void {
    const { arena, backend, inhibitor, sections } = this.#machine;
    const runner = simulatedRunner(arena, backend.createVcpu(index, line, guest), line);
    const options = {
      control: inhibitor.control,
      line,
      map: sections.offset,
      scratch: arena.allocate(gateLineBytes),
      send: () => {},
    };
    this.#vcpus.push({ line, loop: new VcpuLoop(arena, new BoundedRunner(runner), options) });
    inhibitor.resume(index);
  }

  /** Lets each vCPU that may run take a turn. */
  turn(): void {
    for (const { line, loop } of this.#vcpus) {
      if ((this.#machine.arena.words[line >>> 2]! & keepOut) === 0) loop.turn();
    }
  }
}

/** A runner that comes out by itself after some steps: nobody else could run to kick it. */
class BoundedRunner implements VcpuRunner {
  readonly #runner: SimulatedRunner;
  readonly #interrupted: Exit = {
    reason: 'interrupted',
    gpa: 0,
    size: 0,
    write: false,
    data: new Uint8Array(8),
    detail: 0,
  };

  constructor(runner: SimulatedRunner) {
    this.#runner = runner;
  }

  clearKick(): void {
    this.#runner.clearKick();
  }

  run(): Exit {
    for (let step = 0; step < stepsPerTurn; step++) {
      const exit = this.#runner.step();
      if (exit !== undefined) return exit;
    }
    return this.#interrupted;
  }

  access(host: number, data: Uint8Array, write: boolean): void {
    this.#runner.access(host, data, write);
  }

  close(): void {
    this.#runner.close();
  }
}
