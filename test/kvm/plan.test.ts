import { channel } from 'node:diagnostics_channel';
import { describe, expect, it } from 'vitest';
import type { CommitRecord } from '../../ts/kvm/slots-listener.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { backends, needsKvm, withMachine } from './backends.js';

const mebibyte = 0x100000;

describe.each(backends)('a plan that is looked at, on %s', (backend) => {
  it('tells what would be done and why, and nothing is done', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend, splitPoints: [] }, (machine) => {
      const memory = machine.allocate(8 * mebibyte);
      const ram = MemoryRegion.ram(machine.map, 'ram', 4 * mebibyte, { memory });
      const rest = MemoryRegion.ram(machine.map, 'rest', mebibyte, { memory, memoryOffset: 4 * mebibyte });
      const hole = MemoryRegion.mmio(machine.map, 'hole', mebibyte);
      machine.system.add(ram, 0);
      machine.system.add(rest, 4 * mebibyte);
      const before = machine.slots();
      const plan = machine.plan(() => machine.system.add(hole, 2 * mebibyte, { priority: 1 }));
      expect(plan).toMatchObject({ inhibit: true, overlap: true, deletes: 1, creates: 3, bytesTornDown: 4 * mebibyte });
      expect(plan.calls.map(({ kind, reason }) => `${kind}: ${reason}`)).toEqual([
        'delete: changed',
        'create: remainder',
        'create: remainder',
        'create: remainder',
      ]);
      expect(plan.toString()).toBe(
        [
          'delete     0:0  [0x0, 0x400000) (4 MiB)                      rw   some of it changes',
          'create     0:0  [0x0, 0x100000) (1 MiB)                      rw   what stays of a slot that had to go',
          'create     0:2  [0x100000, 0x200000) (1 MiB)                 rw   what stays of a slot that had to go',
          'create     0:3  [0x300000, 0x400000) (1 MiB)                 rw   what stays of a slot that had to go',
          'in a window: addresses that stay mapped are missing in between; 4 MiB torn down, 3 MiB of it for nothing',
        ].join('\n'),
      );
      expect(machine.slots()).toEqual(before);
      expect(hole.parent).toBeUndefined();
      // What was planned is what is done.
      const done: CommitRecord[] = [];
      const listen = (record: unknown) => done.push(record as CommitRecord);
      channel('kvm-memslots:commit').subscribe(listen);
      machine.system.add(hole, 2 * mebibyte, { priority: 1 });
      channel('kvm-memslots:commit').unsubscribe(listen);
      expect(done).toHaveLength(1);
      expect(done[0]).toMatchObject({ calls: plan.calls, deletes: 1, creates: 3, inhibit: true });
      expect(done[0]!.windowMicroseconds).toBeGreaterThan(0);
    });
  });

  it('says which slots stay, and that nothing is to be done where nothing is', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend }, (machine) => {
      const memory = machine.allocate(4 * mebibyte);
      const ram = MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory });
      machine.system.add(ram, 0x10000000);
      const plan = machine.plan(() => {
        machine.system.remove(ram);
        machine.system.add(MemoryRegion.ram(machine.map, 'same', mebibyte, { memory }), 0x10000000);
      });
      expect(plan).toMatchObject({ operations: 0, inhibit: false, kept: 1 });
      expect(plan.toString()).toMatch(
        /^keep +0:0 +\[0x10000000, 0x10100000\) \(1 MiB\) +rw +kept: same translation\nno window/,
      );
      expect(machine.plan(() => {}).toString()).toMatch(/^no window.*0 bytes torn down/);
      expect(() => machine.plan(() => machine.system.add(ram, -1))).toThrow(/-0x1/);
      expect(() => machine.transaction(() => machine.plan(() => {}))).toThrow(/inside a transaction/);
    });
  });

  it('maps a read-only alias of RAM read-only', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend, splitPoints: [] }, (machine) => {
      const memory = machine.allocate(mebibyte);
      const ram = MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory });
      const alias = MemoryRegion.alias(machine.map, 'alias', ram, 0x10000, 0x8000, { readonly: true });
      machine.system.add(ram, 0);
      machine.system.add(alias, 0x10000, { priority: 1 });
      expect(machine.slots().find(({ gpa }) => gpa === 0x10000)).toMatchObject({ size: 0x8000, flags: 2 });
      const plan = machine.plan(() => alias.setReadonly(false));
      expect(plan.calls.filter(({ slot }) => slot.gpa === 0x10000).map(({ kind }) => kind)).toEqual([
        'delete',
        'create',
      ]);
    });
  });

  it('gives a region backed by a guest_memfd slots that name the file, and binds no page twice', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend, splitPoints: [] }, (machine) => {
      if (!machine.capabilities.guestMemfd) context.skip('this KVM has no guest_memfd that can be mapped');
      const memory = machine.allocate(4 * mebibyte, { guestMemfd: true });
      const ram = MemoryRegion.ram(machine.map, 'ram', 2 * mebibyte, { memory });
      machine.system.add(ram, 0);
      expect(machine.slots()).toMatchObject([{ flags: 4, size: 2 * mebibyte }]);
      memory.bytes(0x1234, 1)[0] = 99;
      expect(memory.bytes(0x1234, 1)[0]).toBe(99);
      // A move binds the same pages elsewhere: the old slot has to go first, though nothing overlaps.
      const plan = machine.plan(() => ram.setAddress(0x10000000));
      expect(plan.calls.map(({ kind }) => kind)).toEqual(['delete', 'create']);
      expect(plan.inhibit).toBe(false);
      ram.setAddress(0x10000000);
      ram.setSize(4 * mebibyte);
      const hole = MemoryRegion.mmio(machine.map, 'hole', 0x1000);
      machine.system.add(hole, 0x10100000, { priority: 1 });
      expect(machine.slots().map(({ flags }) => flags)).toEqual(machine.slots().map(() => 4));
      // KVM logs no guest_memfd slot; the same bytes are mapped in the ordinary way then.
      ram.setLogging(true);
      expect(new Set(machine.slots().map(({ flags }) => flags))).toEqual(new Set([1]));
      ram.setLogging(false);
      ram.setReadonly(true);
      expect(new Set(machine.slots().map(({ flags }) => flags))).toEqual(new Set([2]));
      // Two slots of one page of a guest_memfd: KVM refuses the second, and everything is as before.
      ram.setReadonly(false);
      const before = machine.slots();
      const twice = MemoryRegion.alias(machine.map, 'twice', ram, 0, 0x1000);
      expect(() => machine.system.add(twice, 0x20000000)).toThrow(/EINVAL.*the old layout stands/);
      expect(machine.slots()).toEqual(before);
    });
  });
});

describe('a machine with system management mode', () => {
  const options = { backend: 'simulated', simulated: { profile: 'x86-smm' } } as const;

  it('shows a guest_memfd in both address spaces, of which only the first binds it', async () => {
    await withMachine({ ...options, splitPoints: [] }, (machine) => {
      const memory = machine.allocate(mebibyte, { guestMemfd: true });
      machine.transaction(() => {
        machine.system.add(MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory }), 0);
        machine.smm!.root.add(MemoryRegion.alias(machine.map, 'system', machine.system, 0, 2n ** 64n), 0);
      });
      expect(machine.slots(0)).toMatchObject([{ flags: 4, memory, offset: 0 }]);
      expect(machine.slots(1)).toMatchObject([{ flags: 0, memory, offset: 0 }]);
    });
  });

  it('changes both address spaces in one plan and one window', async () => {
    const records: CommitRecord[] = [];
    await withMachine({ ...options, splitPoints: [], onCommit: (record) => records.push(record) }, (machine) => {
      const smm = machine.smm!;
      const memory = machine.allocate(2 * mebibyte);
      const ram = MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory });
      machine.transaction(() => {
        machine.system.add(ram, 0);
        smm.root.add(MemoryRegion.alias(machine.map, 'system', machine.system, 0, 2n ** 64n), 0);
      });
      expect([machine.slots(0).length, machine.slots(1).length]).toEqual([1, 1]);
      ram.setReadonly(true);
      expect(records.at(-1)).toMatchObject({ deletes: 2, creates: 2, overlap: true });
      expect(records.filter(({ windowMicroseconds }) => windowMicroseconds !== undefined)).toHaveLength(1);
      expect(machine.slots(1)).toMatchObject([{ gpa: 0, size: mebibyte, flags: 2 }]);
    });
  });

  it('maps in system management mode what only it may see', async () => {
    await withMachine({ ...options, splitPoints: [] }, (machine) => {
      const memory = machine.allocate(mebibyte);
      const smram = MemoryRegion.ram(machine.map, 'smram', 0x20000, { memory });
      machine.smm!.root.add(smram, 0xa0000);
      expect(machine.slots(0)).toEqual([]);
      expect(machine.slots(1)).toMatchObject([{ gpa: 0xa0000, size: 0x20000 }]);
    });
  });
});

describe('a region of more than 8 TiB', () => {
  it('becomes several slots, each no larger than KVM takes, and one again', async () => {
    const simulated = { memoryBytes: 2 ** 43 + mebibyte, backed: false, dirtyLogBytes: 0 };
    await withMachine({ backend: 'simulated', simulated, splitPoints: [] }, (machine) => {
      const memory = machine.allocate(2 ** 43 + mebibyte);
      const ram = MemoryRegion.ram(machine.map, 'ram', 2 ** 43 + mebibyte, { memory });
      machine.system.add(ram, 0);
      const largest = (2 ** 31 - 1) * 4096;
      expect(machine.slots().map(({ size }) => size)).toEqual([largest, mebibyte + 4096]);
      ram.setSize(largest);
      expect(machine.slots().map(({ size }) => size)).toEqual([largest]);
    });
  });
});

describe('slots that run short', () => {
  it('are saved by merging neighbours, down to what the map needs; then the error has both numbers', async () => {
    await withMachine({ backend: 'simulated', slots: 4, splitPoints: [0x1000, 0x2000, 0x3000] }, (machine) => {
      const memory = machine.allocate(mebibyte);
      machine.system.add(MemoryRegion.ram(machine.map, 'ram', 0x8000, { memory }), 0);
      expect(machine.slotsInUse).toBe(4);
      const at = (gpa: number, offset: number) =>
        machine.system.add(MemoryRegion.ram(machine.map, `at ${gpa}`, 0x1000, { memory, memoryOffset: offset }), gpa);
      at(0x100000, 0x10000);
      at(0x200000, 0x20000);
      at(0x300000, 0x30000);
      expect(machine.slots().map(({ size }) => size)).toEqual([0x8000, 0x1000, 0x1000, 0x1000]);
      expect(() => at(0x400000, 0x40000)).toThrow(/needs 5 slots even when neighbours are merged, and there are 4/);
      expect(machine.slotsInUse).toBe(4);
    });
  });
});
