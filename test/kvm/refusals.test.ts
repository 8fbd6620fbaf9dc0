import { describe, expect, it } from 'vitest';
import type { Arena } from '../../ts/core/arena.js';
import { errno } from '../../ts/core/core.js';
import { MemorySlotsError } from '../../ts/core/errors.js';
import type { GuestProgram } from '../../ts/kvm/backend.js';
import { Machine, type MachineOptions } from '../../ts/kvm/machine.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { withMachine } from './backends.js';
import { FaultyBackend } from './faulty-backend.js';

describe('a machine is refused, and the option named,', () => {
  it.each([
    [{ simulated: { slots: 0 } }, /slots must be an integer from 1 to \d+, not 0/],
    [{ simulated: { physicalAddressBits: 53 } }, /physicalAddressBits must be an integer from 32 to 52, not 53/],
    [{ inhibitor: { timeout: -1 } }, /the inhibit timeout must be 0 or more milliseconds, not -1/],
    [{ inhibitor: { fairnessAge: Number.NaN } }, /the fairness age must be 0 or more milliseconds, not NaN/],
  ] as [MachineOptions, RegExp][])('for %j', async (options, message) => {
    const error = await Machine.create({ backend: 'simulated', ...options }).catch((reason) => reason);
    expect(error).toBeInstanceOf(MemorySlotsError);
    expect(error).toMatchObject({ code: 'INVALID', message: expect.stringMatching(message) });
  });
});

describe('a guest is refused, and its number is free for another,', () => {
  it.each([
    ['without steps, which the simulated KVM runs', {}, /vCPU 0 needs steps/],
    [
      'with an access of three bytes',
      { steps: [{ kind: 'halt' }, { kind: 'check', gpa: 0x1000, size: 3, expected: 0 }] },
      /step 1 at GPA 0x1000 must have a size of 1, 2, 4 or 8 bytes, not 3/,
    ],
    ['with an address below 0', { steps: [{ kind: 'fetch', gpa: -1 }] }, /the GPA of step 0 must be an integer/],
  ] as [string, GuestProgram, RegExp][])('%s', async (_, guest, message) => {
    await withMachine({ backend: 'simulated' }, async (machine) => {
      const error = await machine.addVcpu(guest).catch((reason) => reason);
      expect(error).toMatchObject({ code: 'INVALID', message: expect.stringMatching(message) });
      expect(machine.vcpus).toEqual([]);
      const vcpu = await machine.addVcpu({ steps: [{ kind: 'halt' }] });
      expect(vcpu.index).toBe(0);
      vcpu.resume();
      expect(await vcpu.stopped).toMatchObject({ reason: 'halt' });
    });
  });
});

describe('a dirty log that KVM refuses to read', () => {
  class Unreadable extends FaultyBackend {
    refuses = false;
    override getDirtyLog(...parameters: Parameters<FaultyBackend['getDirtyLog']>): number {
      return this.refuses ? -errno.EIO : super.getDirtyLog(...parameters);
    }
  }

  it('fails the call, or the commit that needs it, with the slot named; nothing has changed, and no page is lost', async () => {
    let kvm: Unreadable | undefined;
    const backend = (arena: Arena) => {
      kvm = new Unreadable(arena, new SimulatedBackend(arena));
      return kvm;
    };
    await withMachine({ backend, policy: 'exact' }, async (machine) => {
      const memory = machine.allocate(0x4000);
      const ram = MemoryRegion.ram(machine.map, 'ram', 0x4000, { memory });
      ram.setLogging(true);
      machine.system.add(ram, 0x10000);
      const vcpu = await machine.addVcpu({
        steps: [{ kind: 'write', gpa: 0x12000, size: 4, value: 7 }, { kind: 'halt' }],
      });
      vcpu.resume();
      await vcpu.stopped;
      kvm!.refuses = true;
      const named = /reading the dirty log of slot 0 \[0x10000, 0x14000\) \(16 KiB\) failed with EIO/;
      expect(() => machine.takeDirtyPages(memory)).toThrow(named);
      expect(() => machine.system.remove(ram)).toThrow(named);
      expect(machine.slots()).toMatchObject([{ gpa: 0x10000, size: 0x4000 }]);
      kvm!.refuses = false;
      machine.system.remove(ram);
      expect(machine.takeDirtyPages(memory)).toEqual([0x2000]);
    });
  });
});
