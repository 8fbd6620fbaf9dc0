import type { Arena } from '../../ts/core/arena.js';
import { createArena } from '../../ts/core/node.js';
import type { Backend, GuestProgram, HostMemory } from '../../ts/kvm/backend.js';
import { Inhibitor } from '../../ts/kvm/inhibitor.js';
import { LinuxBackend } from '../../ts/kvm/linux.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import { Vcpu } from '../../ts/kvm/vcpu-owner.js';
import { SectionMap } from '../../ts/memory/section-map.js';

export const page = 4096;

/** A slot of address space 0, in bytes. */
export interface Slot {
  readonly id: number;
  readonly gpa: number;
  readonly size: number;
  readonly memory: HostMemory;
  readonly flags?: number;
}

/**
 * A machine without a memory map: slots are set by hand, through the interface that both backends have. vCPUs run in
 * workers as a Machine's do; as no section is known, reads that end in MMIO give all ones.
 */
export class SlotsByHand {
  readonly arena: Arena;
  readonly backend: Backend;
  readonly inhibitor: Inhibitor;
  readonly #map: SectionMap;
  readonly #operation: number;
  readonly #vcpus: Vcpu[] = [];

  constructor(kind: Backend['kind'], memoryBytes = 2 ** 24) {
    this.arena = createArena(24 * 2 ** 20);
    this.backend = kind === 'kvm' ? new LinuxBackend(this.arena) : new SimulatedBackend(this.arena, { memoryBytes });
    this.inhibitor = new Inhibitor(this.arena);
    this.#map = new SectionMap(this.arena, 1);
    this.#operation = this.arena.allocate(this.arena.layout.operation.bytes);
  }

  /** KVM_SET_USER_MEMORY_REGION for `slot`: creates, moves, or changes flags. 0 or a negative errno. */
  set(slot: Slot): number {
    return this.#call(slot, this.arena.layout.constants.CREATE);
  }

  delete(slot: Slot): number {
    return this.#call(slot, this.arena.layout.constants.DELETE);
  }

  #call({ id, gpa, size, memory, flags = 0 }: Slot, kind: number): number {
    const { arena } = this;
    const { operation, constants } = arena.layout;
    arena.writeRange(this.#operation + operation.slot, {
      gpa,
      size,
      host: memory.hostAddress,
      offset: 0,
      id,
      flags: flags | constants.BACKED,
      region: 0,
      since: 0,
      addressSpace: 0,
      guestMemfd: -1,
    });
    arena.setU32(this.#operation + operation.kind, kind);
    this.backend.apply(this.#operation, 1);
    return arena.words[(this.#operation + operation.result) >>> 2]!;
  }

  /** Starts a vCPU in a worker. */
  async run(guest: GuestProgram): Promise<Vcpu> {
    const parts = {
      arena: this.arena,
      backend: this.backend,
      inhibitor: this.inhibitor,
      map: this.#map.offset,
      answer: () => {},
      onGone: () => {},
      drainDirtyRings: () => false,
    };
    const vcpu = await Vcpu.start(parts, this.#vcpus.length, this.inhibitor.allocateLine(), guest);
    this.#vcpus.push(vcpu);
    vcpu.resume();
    return vcpu;
  }

  async close(): Promise<void> {
    await Promise.all(this.#vcpus.map((vcpu) => vcpu.end()));
    this.backend.close();
  }
}

/** Resolves once `condition` holds; fails after 20 s. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`${what}: not within 20 s`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
