import type { Arena, MemoryRange } from '../../ts/core/arena.js';
import { formatRange } from '../../ts/core/checks.js';
import { errno } from '../../ts/core/core.js';
import type { Backend } from '../../ts/kvm/backend.js';
import type { Machine, Slot } from '../../ts/kvm/machine.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';

/** Ids that are tried on a real KVM, whichever slots there are. */
const triedIds = 64;

/** What is asked of a machine. */
type Slots = Pick<Machine, 'slots' | 'allocate'>;

/**
 * Asks KVM whether it has exactly the slots that `machine` says it has: what differs, in words. The simulated one can
 * be asked. The real one can't, so calls are made that change nothing if all is as said: a delete of a slot that isn't
 * there is refused; so is a create over the first and the last page of one that is; and creating that one once more
 * succeeds only with the very size and host memory, and as writable or not as it is. (Not so one of a guest_memfd.)
 */
export function kernelDifferences(machine: Slots, kvm: Backend, arena: Arena): string[] {
  const spaces = Array.from({ length: kvm.capabilities.addressSpaces }, (_, space) => space);
  return spaces.flatMap((space) => {
    const slots = machine.slots(space);
    if (kvm instanceof SimulatedBackend) {
      const held = kvm.kernel.layout(space).sort((a, b) => a.gpa - b.gpa);
      const text = ({ id, gpa, size, flags }: (typeof slots)[number] | (typeof held)[number]) =>
        `slot ${space}:${id} at ${formatRange(gpa, size)}, flags ${flags}`;
      return [
        ...slots.map(text).filter((slot) => !held.map(text).includes(slot)),
        ...held.map(text).filter((slot) => !slots.map(text).includes(slot)),
      ];
    }
    const tries = new Tries(kvm, arena, space, machine.allocate(kvm.capabilities.slotAlignment).hostAddress);
    const ids = new Set(slots.map(({ id }) => id));
    const free = Array.from({ length: slots.length + 1 }, (_, id) => id).find((id) => !ids.has(id))!;
    const missing = slots.filter((slot) => !tries.isThere(slot, free));
    const surplus = Array.from({ length: triedIds }, (_, id) => id).filter((id) => !ids.has(id) && !tries.isFree(id));
    return [
      ...missing.map(
        ({ id, gpa, size, flags }) => `no slot ${space}:${id} at ${formatRange(gpa, size)}, flags ${flags}`,
      ),
      ...surplus.map((id) => `slot ${space}:${id} was there`),
    ];
  });
}

/** Calls that change nothing if the slots are as they are said to be. */
class Tries {
  readonly #kvm: Backend;
  readonly #arena: Arena;
  readonly #space: number;
  /** Host memory of one page that no slot shows. */
  readonly #elsewhere: number;
  readonly #operation: number;

  constructor(kvm: Backend, arena: Arena, space: number, elsewhere: number) {
    this.#kvm = kvm;
    this.#arena = arena;
    this.#space = space;
    this.#elsewhere = elsewhere;
    this.#operation = arena.allocate(arena.layout.operation.bytes);
  }

  isFree(id: number): boolean {
    return this.#call('DELETE', { id, gpa: 0, size: 0, host: 0, flags: 0 }) === -errno.EINVAL;
  }

  /** `free` is the id of a slot that there isn't. */
  isThere({ id, gpa, size, flags, memory, offset }: Slot, free: number): boolean {
    const page = this.#kvm.capabilities.slotAlignment;
    for (const at of [gpa, gpa + size - page]) {
      const over = { id: free, gpa: at, size: page, host: this.#elsewhere, flags: 0 };
      if (this.#call('CREATE', over) === -errno.EEXIST) continue;
      this.#call('DELETE', over);
      return false;
    }
    const { constants } = this.#arena.layout;
    const same = { id, gpa, size, host: memory.hostAddress + offset, flags };
    return (flags & constants.GUEST_MEMFD) !== 0 || this.#call('CREATE', same) === 0;
  }

  #call(kind: 'CREATE' | 'DELETE', slot: Pick<MemoryRange, 'id' | 'gpa' | 'size' | 'host' | 'flags'>): number {
    const { constants, operation } = this.#arena.layout;
    const others = { offset: 0, region: 0, since: 0, addressSpace: this.#space, guestMemfd: -1 };
    this.#arena.writeRange(this.#operation + operation.slot, { ...slot, ...others });
    this.#arena.setU32(this.#operation + operation.kind, constants[kind]);
    this.#kvm.apply(this.#operation, 1);
    return this.#arena.words[(this.#operation + operation.result) >>> 2]!;
  }
}
