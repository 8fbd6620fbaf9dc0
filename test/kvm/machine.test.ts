import { execFileSync, spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { MemorySlotsError } from '../../ts/core/errors.js';
import type { GuestProgram, HostMemory } from '../../ts/kvm/backend.js';
import { openKvm } from '../../ts/kvm/linux.js';
import { Machine } from '../../ts/kvm/machine.js';
import type { CommitRecord } from '../../ts/kvm/slots-listener.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { placeWatchGuest, readWatchCounters, watchBlockBytes, writeWord } from '../../ts/replay/watch-guest.js';
import { backends, needsKvm, withMachine } from './backends.js';

const mebibyte = 0x100000;
const codeAddress = 0x70000000;

/** A guest of `code` at {@link codeAddress}, mapped; simulated, `steps`. */
function guestOf(machine: Machine, code: readonly number[], steps: GuestProgram['steps']): GuestProgram {
  const memory = machine.allocate(0x1000);
  memory.bytes(0, code.length).set(code);
  machine.system.add(MemoryRegion.ram(machine.map, 'code', 0x1000, { memory }), codeAddress);
  return { start: { mode: 'protected', entry: codeAddress }, steps: steps ?? [] };
}

const little = (value: number) => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];

async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 20_000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('it did not come to pass within 20 s');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

describe.each(backends)('a machine on %s', (backend) => {
  it('gives KVM one slot for each section and follows every edit', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend, policy: 'exact' }, (machine) => {
      const memory = machine.allocate(4 * mebibyte);
      const ram = MemoryRegion.ram(machine.map, 'ram', 2 * mebibyte, { memory });
      machine.system.add(ram, 0x100000);
      expect(machine.slots()).toMatchObject([{ id: 0, gpa: 0x100000, size: 2 * mebibyte, flags: 0 }]);
      ram.setSize(4 * mebibyte);
      expect(machine.slots()).toMatchObject([{ id: 0, gpa: 0x100000, size: 4 * mebibyte, flags: 0 }]);
      ram.setAddress(0x800000);
      // Nothing overlaps, so the new slot came before the old one went.
      expect(machine.slots()).toMatchObject([{ id: 1, gpa: 0x800000, size: 4 * mebibyte, flags: 0 }]);
      const hole = MemoryRegion.mmio(machine.map, 'hole', 0x1000);
      machine.system.add(hole, 0x900000, { priority: 1 });
      expect(machine.slots().map(({ gpa, size }) => [gpa, size])).toEqual([
        [0x800000, 0x100000],
        [0x901000, 0x2ff000],
      ]);
      machine.transaction(() => {
        machine.system.remove(hole);
        ram.setReadonly(true);
      });
      expect(machine.slots().map(({ gpa, size, flags }) => [gpa, size, flags])).toEqual([[0x800000, 4 * mebibyte, 2]]);
      machine.system.remove(ram);
      expect(machine.slotsInUse).toBe(0);
    });
  });

  it('hides a grow, shrink, split and merge from a guest that reads all the while; the naive way does not', async (context) => {
    needsKvm(context, backend);
    const records: CommitRecord[] = [];
    const options = {
      backend,
      policy: 'exact' as const,
      simulated: { callMicroseconds: 15 },
      onCommit: (record: CommitRecord) => records.push(record),
    };
    await withMachine(options, async (machine) => {
      const memory = machine.allocate(8 * mebibyte);
      const ram = MemoryRegion.ram(machine.map, 'ram', 4 * mebibyte, { memory });
      const hole = MemoryRegion.mmio(machine.map, 'hole', 0x1000);
      const code = machine.allocate(watchBlockBytes);
      machine.transaction(() => {
        machine.system.add(MemoryRegion.ram(machine.map, 'code', watchBlockBytes, { memory: code }), codeAddress);
        machine.system.add(ram, 0x10000000);
        hole.setEnabled(false);
        machine.system.add(hole, 0x10200000, { priority: 1 });
      });
      const watched = [0x1000, 0x1ffffc, 0x201000].map((offset) => ({
        gpa: 0x10000000 + offset,
        value: 0x600d0000 + offset,
      }));
      for (const { gpa, value } of watched) writeWord(memory, gpa - 0x10000000, value);
      const vcpu = await machine.addVcpu(placeWatchGuest(code, 0, codeAddress, watched));
      const counters = () => readWatchCounters(backend === 'simulated', vcpu, code, 0);
      const settle = async () => {
        const { rounds } = counters();
        await until(() => counters().rounds > rounds + 2);
      };
      vcpu.resume();
      const storm = async (updates: 'atomic' | 'naive', commits: number, enough: () => boolean) => {
        machine.updates = updates;
        for (let index = 0; index < commits && !enough(); index++) {
          ram.setSize(8 * mebibyte);
          hole.setEnabled(true);
          ram.setSize(4 * mebibyte);
          hole.setEnabled(false);
          if (index % 20 === 0) await settle();
        }
        await settle();
      };
      await settle();
      records.length = 0;
      await storm('atomic', 100, () => false);
      expect(counters().wrongValues).toBe(0);
      expect(vcpu.counters.spuriousExits).toBe(0);
      expect(records.filter(({ overlap }) => overlap).length).toBe(400);
      expect(records.every(({ windowMicroseconds }) => windowMicroseconds !== undefined)).toBe(true);
      expect(counters().reads).toBeGreaterThan(10);
      // The control: the same storm without windows is seen.
      await storm('naive', 20_000, () => counters().wrongValues > 0);
      expect(counters().wrongValues).toBeGreaterThan(0);
      expect(vcpu.counters.spuriousExits).toBeGreaterThan(0);
    });
  });

  it('lets the handlers of a region answer what no memory does', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend }, async (machine) => {
      const seen: [string, number, number[]][] = [];
      const device = MemoryRegion.mmio(machine.map, 'device', 0x1000, {
        read: (offset, data) => {
          seen.push(['read', offset, []]);
          data.set(little(0xcafef00d).slice(0, data.length));
        },
        write: (offset, data) => seen.push(['write', offset, [...data]]),
      });
      machine.system.add(device, 0xd0000000);
      const guest = guestOf(
        machine,
        // mov [0xd0000010], 0x11223344; mov eax, [0xd0000020]; hlt
        [0xc7, 0x05, ...little(0xd0000010), ...little(0x11223344), 0xa1, ...little(0xd0000020), 0xf4],
        [
          { kind: 'write', gpa: 0xd0000010, size: 4, value: 0x11223344 },
          { kind: 'check', gpa: 0xd0000020, size: 4, expected: 0xcafef00d },
          { kind: 'halt' },
        ],
      );
      const vcpu = await machine.addVcpu(guest);
      vcpu.resume();
      expect(await vcpu.stopped).toMatchObject({ reason: 'halt' });
      expect(seen).toEqual([
        ['write', 0x10, [0x44, 0x33, 0x22, 0x11]],
        ['read', 0x20, []],
      ]);
      expect(vcpu.counters).toMatchObject({ mmioExits: 2, spuriousExits: 0, guestWrongValues: 0 });
    });
  });

  it('reports a guest that fetches from a hole, and stays usable', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend }, async (machine) => {
      const memory = machine.allocate(2 * mebibyte);
      // Some kernels refuse KVM_RUN altogether (ENOSPC) while there is no slot at all.
      machine.system.add(MemoryRegion.ram(machine.map, 'low', 0x1000, { memory }), 0);
      const vcpu = await machine.addVcpu({
        start: { mode: 'protected', entry: 0x123000 },
        steps: [{ kind: 'fetch', gpa: 0x123000 }],
      });
      vcpu.resume();
      expect((await vcpu.stopped)?.reason).toMatch(/internal-error|shutdown/);
      expect(vcpu.counters.internalErrors).toBe(1);
      machine.system.add(MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory }), 0x100000);
      expect(machine.slotsInUse).toBe(2);
    });
  });

  it('undoes what it did when a call fails, and the next commit works', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend, policy: 'exact' }, (machine) => {
      const memory = machine.allocate(4 * mebibyte);
      const ram = MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory });
      machine.system.add(ram, 0x100000);
      // KVM refuses the second create: no physical address has 53 bits.
      const far = MemoryRegion.ram(machine.map, 'far', 0x1000, { memory });
      const edit = () =>
        machine.transaction(() => {
          ram.setSize(2 * mebibyte);
          machine.system.add(far, 2 ** 52);
        });
      expect(edit).toThrow(
        /creating slot 1 at \[0x10000000000000, 0x10000000001000\) \(4 KiB\) failed with EINVAL.*the old layout stands/,
      );
      expect(machine.slots()).toMatchObject([{ id: 0, gpa: 0x100000, size: mebibyte, flags: 0 }]);
      expect(ram.size).toBe(mebibyte);
      ram.setSize(4 * mebibyte);
      expect(machine.slots()).toMatchObject([{ id: 0, gpa: 0x100000, size: 4 * mebibyte, flags: 0 }]);
    });
  });

  it('adds and ends vCPUs while others run, and leaves nothing behind', async (context) => {
    needsKvm(context, backend);
    const descriptors = () => readdirSync('/proc/self/fd').length;
    const before = descriptors();
    const machine = await Machine.create({ backend });
    // jmp $
    const guest = guestOf(machine, [0xeb, 0xfe], [{ kind: 'fetch', gpa: codeAddress }]);
    const first = await machine.addVcpu(guest);
    first.resume();
    for (let round = 0; round < 3; round++) {
      const second = await machine.addVcpu(guest);
      expect(second.index).toBe(1);
      second.resume();
      await until(() => second.counters.entries > 0);
      second.pause();
      await second.end();
      expect(machine.vcpus).toEqual([first]);
    }
    await machine.close();
    await machine.close();
    expect(() => machine.allocate(4096)).toThrow(/this machine is closed/);
    await until(() => descriptors() <= before);
  });

  it('lets the process end though a vCPU runs', (context) => {
    needsKvm(context, backend);
    const script = `
      import { Machine } from './dist/kvm/machine.js';
      import { MemoryRegion } from './dist/memory/region.js';
      const machine = await Machine.create({ backend: '${backend}' });
      const memory = machine.allocate(4096);
      memory.bytes(0, 2).set([0xeb, 0xfe]);
      machine.system.add(MemoryRegion.ram(machine.map, 'code', 4096, { memory }), 0x1000);
      const vcpu = await machine.addVcpu({ start: { mode: 'protected', entry: 0x1000 }, steps: [{ kind: 'fetch', gpa: 0x1000 }] });
      vcpu.resume();
      while (vcpu.counters.entries === 0) await new Promise((resolve) => setTimeout(resolve, 1));
      process.exit(7);`;
    let status: number | null | undefined;
    try {
      execFileSync(process.execPath, ['--input-type=module', '-e', script], { timeout: 20_000 });
    } catch (error) {
      ({ status } = error as { status?: number | null });
    }
    expect(status).toBe(7);
  });
});

describe('what a machine refuses', () => {
  it.each([
    ['/nonexistent/kvm', /there is no \/nonexistent\/kvm/],
    ['/', /can't be opened/],
  ])('%s as the KVM device, saying why', (path, message) => {
    expect(() => openKvm(path)).toThrow(message);
  });

  it('a device that may not be opened: it names the group to join', () => {
    // Root may open anything, so the refusal itself has to be made up.
    const script = `
      import fs from 'node:fs';
      import { syncBuiltinESMExports } from 'node:module';
      const { openSync } = fs;
      fs.openSync = (path, ...rest) => {
        if (path === '/dev/kvm') throw Object.assign(new Error('permission denied'), { code: 'EACCES' });
        return openSync(path, ...rest);
      };
      syncBuiltinESMExports();
      const { Machine } = await import('./dist/kvm/machine.js');
      try { await Machine.create({ backend: 'kvm' }); } catch (error) { console.log(error.code, error.message); }
      const machine = await Machine.create();
      console.log(machine.backend, machine.why);
      await machine.close();`;
    const out = execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
    expect(out).toMatch(/^UNSUPPORTED \/dev\/kvm may not be opened: join its group/);
    expect(out).toMatch(/^simulated \/dev\/kvm may not be opened/m);
  });

  it.each([
    [
      'a negative address',
      (machine: Machine, memory: HostMemory) =>
        machine.system.add(MemoryRegion.ram(machine.map, 'ram', 0x1000, { memory }), -0x1000),
      /-0x1000/,
    ],
    [
      'a size past 2^53 for RAM',
      (machine: Machine, memory: HostMemory) => MemoryRegion.ram(machine.map, 'ram', 2 ** 54, { memory }),
      /0x40000000000000/,
    ],
    [
      'memory that is too small',
      (machine: Machine, memory: HostMemory) => MemoryRegion.ram(machine.map, 'ram', 0x9000, { memory }),
      /0x9000|36/,
    ],
    ['unaligned guest memory', (machine: Machine) => machine.allocate(5000), /0x1388/],
    ['a view outside of guest memory', (_: Machine, memory: HostMemory) => memory.bytes(0x1ff0, 0x20), /0x1ff0/],
  ])('%s, naming the value, and nothing has changed', async (_, edit, message) => {
    await withMachine({ backend: 'simulated' }, (machine) => {
      const memory = machine.allocate(0x2000);
      expect(() => edit(machine, memory)).toThrow(MemorySlotsError);
      expect(() => edit(machine, memory)).toThrow(message);
      expect(machine.slotsInUse).toBe(0);
    });
  });
});

describe('the demo', () => {
  it.each(backends)(
    'shows holes in the naive mode and none in the atomic one, on %s',
    { timeout: 120_000 },
    (backend, ...rest) => {
      void rest;
      const out = execFileSync(
        process.execPath,
        ['dist/cli.js', 'demo', '--backend', backend === 'kvm' ? 'auto' : backend, '--seconds', '4', '--json'],
        { encoding: 'utf8' },
      );
      const result = JSON.parse(out);
      const [naive, atomic] = result.modes;
      expect(result.vcpus).toBe(2);
      expect(naive).toMatchObject({ mode: 'naive', inhibited: 0 });
      expect(naive.spuriousExits).toBeGreaterThan(0);
      expect(naive.wrongValues).toBeGreaterThan(0);
      expect(atomic).toMatchObject({ mode: 'atomic', spuriousExits: 0, wrongValues: 0, internalErrors: 0 });
      expect(atomic.overlapping).toBeGreaterThan(10);
      expect(atomic.inhibited).toBe(atomic.overlapping);
      expect(atomic.guestReads).toBeGreaterThan(1000);
    },
  );

  it('ends within a second of Ctrl-C', async () => {
    const child = spawn(process.execPath, ['dist/cli.js', 'demo', '--seconds', '60', '--json']);
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    const asked = performance.now();
    child.kill('SIGINT');
    const status = await new Promise((resolve) => child.on('exit', resolve));
    expect(status).toBe(130);
    // A bound that separates "ends" from "goes on for a minute", not a measurement.
    expect(performance.now() - asked).toBeLessThan(10_000);
  });
});
