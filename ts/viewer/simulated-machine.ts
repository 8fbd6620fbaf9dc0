import { Arena } from '../core/arena.js';
import { DirtyLog } from '../kvm/dirty-log.js';
import { Inhibitor } from '../kvm/inhibitor.js';
import { Planner } from '../kvm/planner.js';
import { SimulatedBackend } from '../kvm/simulated.js';
import { type CommitRecord, SlotsListener } from '../kvm/slots-listener.js';
import { naiveWord } from '../kvm/vcpu.js';
import { AddressSpace, MemoryMap } from '../memory/address-space.js';
import { MemoryRegion } from '../memory/region.js';
import { SectionMap } from '../memory/section-map.js';
import type { ReplayMachine } from '../replay/player.js';

/** Enough for a page: slots an address space, sections a transaction and in all. */
const slots = 1024;
const sections = 4096;
const arenaBytes = 16 * 1024 * 1024;
const dirtyLogBytes = 1024 * 1024;

/** How a {@link SimulatedMachine} is made. */
export interface SimulatedMachineOptions {
  readonly module: WebAssembly.Module;
  /** Whether `module` is the one for shared memory. */
  readonly shared: boolean;
  /** All memory that guests may be given, in bytes. */
  readonly memoryBytes: number;
  /** How long KVM takes for a call, in microseconds. */
  readonly callMicroseconds: number;
  readonly onCommit: (record: CommitRecord) => void;
}

/**
 * A machine on the simulated KVM, put together without anything of Node's: what Machine is, but for vCPUs, which its
 * maker runs as the platform allows.
 */
export class SimulatedMachine implements ReplayMachine {
  readonly arena: Arena;
  readonly backend: SimulatedBackend;
  readonly inhibitor: Inhibitor;
  readonly sections: SectionMap;
  readonly planner: Planner;
  readonly map = new MemoryMap();
  readonly system: MemoryRegion;
  readonly smm: AddressSpace;
  readonly #listener: SlotsListener;

  constructor({ module, shared, memoryBytes, callMicroseconds, onCommit }: SimulatedMachineOptions) {
    this.arena = Arena.create(module, arenaBytes, shared);
    this.backend = new SimulatedBackend(this.arena, {
      profile: 'x86-smm',
      slots,
      memoryBytes,
      callMicroseconds,
      dirtyLogBytes,
    });
    this.inhibitor = new Inhibitor(this.arena);
    this.sections = new SectionMap(this.arena, sections);
    const { pageSize, largestSlot } = this.backend.capabilities;
    const plans = { policy: 'exact', slots, pageSize, largestSlot, discardDirty: true, sections } as const;
    this.planner = new Planner(this.arena, this.arena.wasm, plans);
    const parts = [this.arena, this.backend, this.inhibitor, this.planner, this.sections] as const;
    this.#listener = new SlotsListener(...parts, new DirtyLog(this.backend, this.planner), { onCommit });
    this.system = MemoryRegion.container(this.map, 'system', 2n ** 64n);
    const memory = new AddressSpace(this.map, 'memory', this.system);
    this.smm = new AddressSpace(this.map, 'smm', MemoryRegion.container(this.map, 'smm', 2n ** 64n));
    this.map.addListener(this.#listener, [memory, this.smm]);
  }

  allocate(bytes: number) {
    return this.backend.allocate(bytes);
  }

  transaction<Result>(edit: () => Result): Result {
    return this.map.transaction(edit);
  }

  /** As Machine.updates. */
  get updates(): 'atomic' | 'naive' {
    return this.#listener.updates;
  }

  set updates(updates: 'atomic' | 'naive') {
    this.#listener.updates = updates;
    const word = (this.inhibitor.control >>> 2) + naiveWord;
    Atomics.store(this.arena.words, word, updates === 'naive' ? 1 : 0);
  }
}
