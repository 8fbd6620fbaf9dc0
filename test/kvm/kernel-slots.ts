import type { Arena } from '../../ts/core/arena.js';
import { formatRange } from '../../ts/core/checks.js';
import { errno } from '../../ts/core/core.js';
import type { Backend } from '../../ts/kvm/backend.js';
import type { Machine } from '../../ts/kvm/machine.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';

/** Ids that are tried on a real KVM, whichever slots there are. */
const triedIds = 64;

/**
 * Asks KVM whether it has exactly the slots that `machine` says it has: what differs, in words. The simulated one can
 * be asked. The real one can't: a create over an existing slot with other host memory is refused with EINVAL and
 * changes nothing, a delete of a slot that isn't there too.
 */
export function kernelDifferences(machine: Machine, kvm: Backend, arena: Arena): string[] {
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
    const tries = new Tries(machine, kvm, arena, space);
    const missing = slots
      .filter(({ id, gpa, size }) => !tries.refuses('CREATE', id, gpa, size))
      .map(({ id, gpa, size }) => `slot ${space}:${id} at ${formatRange(gpa, size)} isn't there`);
    const surplus = Array.from({ length: triedIds }, (_, id) => id)
      .filter((id) => !slots.some((slot) => slot.id === id) && !tries.refuses('DELETE', id, 0, 0))
      .map((id) => `slot ${space}:${id} was there`);
    return [...missing, ...surplus];
  });
}

/** Calls that KVM is to refuse. */
class Tries {
  readonly #kvm: Backend;
  readonly #arena: Arena;
  readonly #space: number;
  readonly #operation: number;
  /** Host memory that no slot shows. */
  readonly #elsewhere: number;

  constructor(machine: Machine, kvm: Backend, arena: Arena, space: number) {
    this.#kvm = kvm;
    this.#arena = arena;
    this.#space = space;
    this.#operation = arena.allocate(arena.layout.operation.bytes);
    this.#elsewhere = machine.allocate(kvm.capabilities.slotAlignment).hostAddress;
  }

  refuses(kind: 'CREATE' | 'DELETE', id: number, gpa: number, size: number): boolean {
    const { constants, operation } = this.#arena.layout;
    this.#arena.writeRange(this.#operation + operation.slot, {
      gpa,
      size,
      host: kind === 'CREATE' ? this.#elsewhere : 0,
      id,
      offset: 0,
      flags: 0,
      region: 0,
      since: 0,
      addressSpace: this.#space,
      guestMemfd: -1,
    });
    this.#arena.setU32(this.#operation + operation.kind, constants[kind]);
    this.#kvm.apply(this.#operation, 1);
    return this.#arena.words[(this.#operation + operation.result) >>> 2] === -errno.EINVAL;
  }
}
