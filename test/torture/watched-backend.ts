import type { Arena, MemoryRange } from '../../ts/core/arena.js';
import { formatRange } from '../../ts/core/checks.js';
import type { Backend, GuestProgram, VcpuSetup } from '../../ts/kvm/backend.js';
import { gateBits } from '../../ts/kvm/gate.js';
import { FaultyBackend } from '../kvm/faulty-backend.js';
import { flags } from './disturbers.js';

type Held = Pick<MemoryRange, 'gpa' | 'size' | 'host' | 'flags'>;

/**
 * Stands between a machine and its KVM: makes calls fail when told to, keeps a table of its own from the calls that
 * succeeded, and looks at each batch whether anybody is inside who must be out.
 */
export class WatchedBackend extends FaultyBackend {
  /** What went wrong, in words. */
  readonly violations: string[] = [];
  /** Drops one kick in so many of those that aren't for a window; 0 for none. For a control experiment. */
  dropKicks = 0;
  /** What each vCPU's thread was given, by index. */
  readonly setups = new Map<number, VcpuSetup>();
  readonly #words: Int32Array;
  readonly #ofThreads: Int32Array;
  readonly #lines = new Map<number, number>();
  /** By address space and id. */
  readonly #slots = new Map<string, Held>();
  readonly #memory: Arena;
  #kicks = 0;
  /** Arena offset of the gate for other callers of VM ioctls. */
  commonLine = 0;

  /** `ofThreads` are the words that {@link flags} names. */
  constructor(arena: Arena, inner: Backend, ofThreads: Int32Array) {
    super(arena, inner);
    this.#memory = arena;
    this.#words = arena.words;
    this.#ofThreads = ofThreads;
  }

  override apply(operations: number, count: number): number {
    const window = this.#isWindow();
    if (window) {
      this.#expectNobodyInside();
      Atomics.store(this.#ofThreads, flags.window, 1);
    }
    const done = super.apply(operations, count);
    if (window) {
      Atomics.store(this.#ofThreads, flags.window, 0);
      this.#expectNobodyInside();
    }
    for (let index = 0; index < done; index++) this.#note(operations + index * this.#memory.layout.operation.bytes);
    return done;
  }

  #isWindow(): boolean {
    return (Atomics.load(this.#words, this.commonLine >>> 2) & gateBits.shut) !== 0;
  }

  #expectNobodyInside(): void {
    for (const line of [this.commonLine, ...this.#lines.values()]) {
      const inside = Atomics.load(this.#words, line >>> 2) & gateBits.count;
      if (inside > 0) this.violations.push(`${inside} inside the gate at ${line} in an inhibit window`);
    }
  }

  /** Keeps the books of a call that succeeded. */
  #note(operation: number): void {
    const { layout } = this.#memory;
    const slot = this.#memory.readRange(operation + layout.operation.slot);
    const kind = this.#memory.u32(operation + layout.operation.kind);
    const key = `${slot.addressSpace}:${slot.id}`;
    const held = this.#slots.get(key);
    const what = `slot ${key} at ${formatRange(slot.gpa, slot.size)}`;
    if ((kind === layout.constants.CREATE) === (held !== undefined))
      this.violations.push(`${what} was made or unmade twice`);
    if (kind === layout.constants.DELETE) this.#slots.delete(key);
    else this.#slots.set(key, slot);
  }

  /** Slots of an address space as the calls left them, by ascending address. */
  held(addressSpace: number): Held[] {
    const prefix = `${addressSpace}:`;
    return [...this.#slots]
      .flatMap(([key, slot]) => (key.startsWith(prefix) ? slot : []))
      .sort((a, b) => a.gpa - b.gpa);
  }

  override createVcpu(index: number, line: number, guest: GuestProgram): VcpuSetup {
    const setup = super.createVcpu(index, line, guest);
    this.setups.set(index, setup);
    this.#lines.set(index, line);
    return setup;
  }

  override destroyVcpu(index: number): void {
    this.#lines.delete(index);
    super.destroyVcpu(index);
  }

  override kick(index: number): void {
    if (this.dropKicks > 0 && !this.#isWindow() && ++this.#kicks % this.dropKicks === 0) return;
    super.kick(index);
  }
}
