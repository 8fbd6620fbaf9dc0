import { describe, expect, it } from 'vitest';
import { errno } from '../../ts/core/core.js';
import type { HostMemory } from '../../ts/kvm/backend.js';
import type { Machine, MachineOptions } from '../../ts/kvm/machine.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import type { CommitRecord } from '../../ts/kvm/slots-listener.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { withMachine } from './backends.js';
import { oneWriteGuest, pageBytes, stopReason, sweepingGuest, until } from './dirty-guest.js';
import { emulated, named, native, needs, optionsOf } from './dirty-subjects.js';

const base = 0x10000000;
const page = pageBytes;
const offsets = (...pages: number[]) => pages.map((number) => number * page);
const range = (from: number, to: number) => offsets(...Array.from({ length: to - from }, (_, index) => from + index));

/** Logged RAM of `pages` pages at {@link base}. */
function loggedRam(machine: Machine, pages: number): { memory: HostMemory; ram: MemoryRegion } {
  const memory = machine.allocate(pages * page);
  const ram = MemoryRegion.ram(machine.map, 'ram', memory.size, { memory });
  ram.setLogging(true);
  machine.system.add(ram, base);
  return { memory, ram };
}

describe.each(named([...emulated, ...native]))('the dirty log of %s', (_, subject) => {
  const options = optionsOf(subject);
  const { guests } = subject;

  /** Has a guest write to `count` pages from page `first`, once each. */
  async function write(machine: Machine, memory: HostMemory, first: number, count: number): Promise<void> {
    const vcpu = await machine.addVcpu(sweepingGuest(machine, 1, guests, base + first * page, count, 0x5a));
    vcpu.resume();
    await until(() => memory.bytes((first + count - 1) * page, 1)[0] === 0x5a);
    await vcpu.end();
  }

  it('reports the pages that a guest wrote, in order, and each once', async (context) => {
    needs(context, subject);
    await withMachine(options, async (machine) => {
      const { memory } = loggedRam(machine, 200);
      await write(machine, memory, 3, 130);
      expect(machine.takeDirtyPages(memory)).toEqual(range(3, 133));
      expect(machine.takeDirtyPages(memory)).toEqual([]);
    });
  });

  it('reports nothing of memory that is not logged, and logs what is logged later without a window', async (context) => {
    needs(context, subject);
    const records: CommitRecord[] = [];
    await withMachine({ ...options, onCommit: (record) => records.push(record) }, async (machine) => {
      const { memory, ram } = loggedRam(machine, 16);
      ram.setLogging(false);
      await write(machine, memory, 0, 8);
      expect(machine.takeDirtyPages(memory)).toEqual([]);
      records.length = 0;
      ram.setLogging(true);
      expect(records).toMatchObject([{ inhibit: false, flagChanges: 1, creates: 0, deletes: 0 }]);
    });
  });

  describe.each<[string, (machine: Machine, ram: MemoryRegion) => void]>([
    ['deleted', (machine, ram) => machine.system.remove(ram)],
    ['disabled', (_, ram) => ram.setEnabled(false)],
    ['shrunk', (_, ram) => ram.setSize(5 * page)],
    ['moved', (_, ram) => ram.setAddress(base + 0x1000000)],
    ['made read-only', (_, ram) => ram.setReadonly(true)],
    ['no longer logged', (_, ram) => ram.setLogging(false)],
    ['split', ({ map, system }) => system.add(MemoryRegion.mmio(map, 'hole', page), base + 9 * page, { priority: 1 })],
    [
      'deleted, and its id given to another logged slot, in one transaction',
      (machine, ram) =>
        machine.transaction(() => {
          const memory = machine.allocate(16 * page);
          const other = MemoryRegion.ram(machine.map, 'other', memory.size, { memory });
          other.setLogging(true);
          machine.system.remove(ram);
          machine.system.add(other, base);
        }),
    ],
  ])('keeps the bits of a slot that is', (what, edit) => {
    it.each(['stable', 'exact'] as const)(`${what}, policy %s`, async (policy, ...rest) => {
      needs(rest[0] as never, subject);
      const records: CommitRecord[] = [];
      await withMachine({ ...options, policy, onCommit: (record) => records.push(record) }, async (machine) => {
        const { memory, ram } = loggedRam(machine, 16);
        await write(machine, memory, 2, 10);
        records.length = 0;
        edit(machine, ram);
        expect(records).toMatchObject([{ harvests: 1, inhibit: true }]);
        expect(records[0]!.windowMicroseconds).toBeGreaterThan(0);
        expect(machine.takeDirtyPages(memory)).toEqual(range(2, 12));
        expect(machine.takeDirtyPages(memory)).toEqual([]);
      });
    });
  });

  it('keeps the bits of slots that a failed commit tore down, and goes on logging', async (context) => {
    needs(context, subject);
    await withMachine({ ...options, policy: 'exact' }, async (machine) => {
      const { memory, ram } = loggedRam(machine, 16);
      await write(machine, memory, 2, 3);
      const far = MemoryRegion.ram(machine.map, 'far', page, { memory: machine.allocate(page) });
      const edit = () =>
        machine.transaction(() => {
          ram.setSize(8 * page);
          // No physical address has 53 bits.
          machine.system.add(far, 2 ** 52);
        });
      expect(edit).toThrow(/the old layout stands/);
      expect(machine.takeDirtyPages(memory)).toEqual(range(2, 5));
      await write(machine, memory, 7, 2);
      expect(machine.takeDirtyPages(memory)).toEqual(range(7, 9));
    });
  });

  it('tells memories apart that one slot maps, because they are neighbours in the host as well', async (context) => {
    needs(context, subject);
    await withMachine(options, async (machine) => {
      const all = Array.from({ length: 8 }, () => machine.allocate(8 * page));
      all.sort((a, b) => a.hostAddress - b.hostAddress);
      const index = all.findIndex((a, position) => a.hostAddress + a.size === all[position + 1]?.hostAddress);
      if (index < 0) return context.skip('the host put no two of eight memories next to each other');
      const [low, high] = [all[index]!, all[index + 1]!];
      machine.transaction(() => {
        for (const [position, memory] of [low, high].entries()) {
          const ram = MemoryRegion.ram(machine.map, 'ram', memory.size, { memory });
          ram.setLogging(true);
          machine.system.add(ram, base + position * 8 * page);
        }
      });
      expect(machine.slots()).toMatchObject([{ gpa: base, size: 16 * page }]);
      const vcpu = await machine.addVcpu(sweepingGuest(machine, 1, guests, base + 6 * page, 5, 0x5a));
      vcpu.resume();
      await until(() => high.bytes(2 * page, 1)[0] === 0x5a);
      await vcpu.end();
      expect(machine.takeDirtyPages(high)).toEqual(range(0, 3));
      expect(machine.takeDirtyPages(low)).toEqual(range(6, 8));
      expect([machine.takeDirtyPages(high), machine.takeDirtyPages(low)]).toEqual([[], []]);
    });
  });

  it("reports the VMM's own writes", async (context) => {
    needs(context, subject);
    await withMachine(options, (machine) => {
      const { memory } = loggedRam(machine, 16);
      memory.write(2 * page - 1, Uint8Array.of(1, 2));
      memory.write(9 * page, new Uint8Array(0));
      memory.bytes(5 * page, 1).set([1]);
      expect(machine.takeDirtyPages(memory)).toEqual(offsets(1, 2));
      machine.markDirty(memory, 5 * page, 1);
      expect(machine.takeDirtyPages(memory)).toEqual(offsets(5));
      expect(() => machine.markDirty(memory, 15 * page, page + 1)).toThrow(/outside/);
      expect(() => memory.write(15 * page, new Uint8Array(page + 1))).toThrow(/outside/);
      expect(machine.takeDirtyPages(memory)).toEqual([]);
    });
  });

  /** Shows the first `bytes` bytes of `memory` at {@link base}: no slot can map the last, partial page. */
  function partly(machine: Machine, memory: HostMemory, bytes: number, gpa: number, logged: boolean): MemoryRegion {
    const ram = MemoryRegion.ram(machine.map, 'ram', memory.size, { memory });
    ram.setLogging(logged);
    machine.system.add(MemoryRegion.alias(machine.map, 'part', ram, 0, bytes), gpa);
    return ram;
  }

  it('reports writes to memory that no slot can map, also across two regions', async (context) => {
    needs(context, subject);
    await withMachine(options, async (machine) => {
      const [low, high] = [machine.allocate(2 * page), machine.allocate(page)];
      partly(machine, low, page + 0x800, base, true);
      partly(machine, high, 0x800, base + page + 0x800, true);
      const vcpu = await machine.addVcpu(oneWriteGuest(machine, 1, guests, base + page + 0x7fe, 0x44332211));
      vcpu.resume();
      expect(await vcpu.stopped).toMatchObject({ reason: stopReason[guests] });
      expect(vcpu.counters.mmioExits).toBe(1);
      expect([...low.bytes(page + 0x7fe, 3)]).toEqual([0x11, 0x22, 0]);
      expect([...high.bytes(0, 3)]).toEqual([0x33, 0x44, 0]);
      expect([machine.takeDirtyPages(low), machine.takeDirtyPages(high)]).toEqual([offsets(1), offsets(0)]);
    });
  });

  it('reports a write that was on its way when logging began', async (context) => {
    needs(context, subject);
    await withMachine(options, async (machine) => {
      const memory = machine.allocate(2 * page);
      const ram = partly(machine, memory, page + 0x800, base, false);
      const vcpu = await machine.addVcpu(oneWriteGuest(machine, 1, guests, base + page + 0x10, 0x5a));
      vcpu.resume();
      // The owner's event loop stands still: whatever the vCPU asks for has to wait.
      const pause = new Int32Array(new SharedArrayBuffer(4));
      const deadline = Date.now() + 10_000;
      while (vcpu.counters.mmioExits === 0 && Date.now() < deadline) Atomics.wait(pause, 0, 0, 1);
      Atomics.wait(pause, 0, 0, 20);
      ram.setLogging(true);
      expect(machine.takeDirtyPages(memory)).toEqual([]);
      const seen = memory.bytes(page + 0x10, 1)[0];
      expect(await vcpu.stopped).toMatchObject({ reason: stopReason[guests] });
      expect(seen).toBe(0);
      expect(machine.takeDirtyPages(memory)).toEqual(offsets(1));
    });
  });

  it('reports all of a slot that guests wrote to before its commit failed, and nothing of the next one', async (context) => {
    needs(context, subject);
    let meanwhile: (() => void) | undefined;
    const failing = optionsOf(subject, (backend, arena) => {
      const { apply } = backend;
      // The second call fails, after guests had their time with the slot that the first created.
      backend.apply = (operations, count) => {
        if (meanwhile === undefined) return apply.call(backend, operations, count);
        const { operation } = arena.layout;
        expect(apply.call(backend, operations, 1)).toBe(1);
        meanwhile();
        meanwhile = undefined;
        arena.words[(operations + operation.bytes + operation.result) >>> 2] = -errno.ENOMEM;
        return 1;
      };
    });
    await withMachine(failing, async (machine) => {
      const memory = machine.allocate(8 * page);
      const ram = MemoryRegion.ram(machine.map, 'ram', memory.size, { memory });
      const other = MemoryRegion.ram(machine.map, 'other', page, { memory: machine.allocate(page) });
      ram.setLogging(true);
      const vcpu = await machine.addVcpu(sweepingGuest(machine, 1, guests, base + 3 * page, 1, 0x5a));
      // No kick is needed, as no window is: the owner waits for the guest in the middle of the commit.
      const edit = () =>
        machine.transaction(() => {
          machine.system.add(ram, base);
          machine.system.add(other, base + 0x1000000);
        });
      meanwhile = () => {
        vcpu.resume();
        const deadline = Date.now() + 10_000;
        while (memory.bytes(3 * page, 1)[0] !== 0x5a && Date.now() < deadline);
      };
      expect(edit).toThrow(/ENOMEM.*the old layout stands/);
      expect(memory.bytes(3 * page, 1)[0]).toBe(0x5a);
      const next = machine.allocate(8 * page);
      const following = MemoryRegion.ram(machine.map, 'next', next.size, { memory: next });
      following.setLogging(true);
      machine.system.add(following, base + 0x2000000);
      expect(machine.takeDirtyPages(next)).toEqual([]);
      expect(machine.takeDirtyPages(memory)).toEqual(range(0, 8));
    });
  });
});

describe('the bitmaps of a simulated KVM', () => {
  it.each([
    ['x86', 2],
    ['arm64', 2],
    ['s390', 0],
  ] as const)('clears what it read by calls of its own where %s has them', async (profile, expected) => {
    let cleared = 0;
    const options: MachineOptions = {
      splitPoints: [],
      backend: (arena) => {
        const backend = new SimulatedBackend(arena, { profile, callMicroseconds: 0 });
        const clear = backend.kernel.clearDirtyLog.bind(backend.kernel);
        backend.kernel.clearDirtyLog = (...parameters) => {
          cleared++;
          return clear(...parameters);
        };
        return backend;
      },
    };
    await withMachine(options, (machine) => {
      const { memory } = loggedRam(machine, machine.capabilities.slotAlignment / page);
      machine.takeDirtyPages(memory);
      machine.takeDirtyPages(memory);
      expect(cleared).toBe(expected);
    });
  });
});
