import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { describe, expect, it } from 'vitest';
import { Machine, MemoryRegion, type MemorySlotsError } from '../../ts/index.js';
import { withMachine } from '../kvm/backends.js';

const guest = { steps: [{ kind: 'check', gpa: 0, size: 4, expected: 0 }] } as const;
const simulated = { backend: 'simulated' } as const;

describe('resources', () => {
  it('are let go of at the end of their scope: machine, vCPU, listener', async () => {
    const heard: string[] = [];
    let machine: Machine;
    {
      await using scoped = await Machine.create(simulated);
      machine = scoped;
      machine.system.add(MemoryRegion.ram(machine.map, 'ram', 0x1000, { memory: machine.allocate(0x1000) }), 0);
      {
        using _listener = machine.map.addListener(
          { add: ({ region }) => heard.push(`+${region.name}`), delete: ({ region }) => heard.push(`-${region.name}`) },
          [machine.memory],
        );
        await using vcpu = await machine.addVcpu(guest);
        vcpu.resume();
        expect(machine.vcpus).toEqual([vcpu]);
      }
      expect(machine.vcpus).toEqual([]);
      expect(heard).toEqual(['+ram', '-ram']);
      await machine.addVcpu(guest);
    }
    expect(machine.vcpus).toEqual([]);
    expect(() => machine.transaction(() => {})).toThrow('this machine is closed');
  });
});

describe('adding a vCPU', () => {
  it('is given up when its signal is raised, before or while its thread starts; another can be added then', async () => {
    await withMachine(simulated, async (machine) => {
      const early = AbortSignal.abort(new Error('changed my mind'));
      const error = await machine.addVcpu(guest, { signal: early }).catch((reason: MemorySlotsError) => reason);
      expect(error).toMatchObject({ code: 'CANCELLED', cause: { message: 'changed my mind' } });
      const controller = new AbortController();
      const late = machine.addVcpu(guest, { signal: controller.signal });
      controller.abort();
      await expect(late).rejects.toMatchObject({ code: 'CANCELLED' });
      expect(machine.vcpus).toEqual([]);
      const vcpu = await machine.addVcpu(guest, { signal: new AbortController().signal });
      expect(vcpu.index).toBe(0);
    });
  });
});

describe('commits', () => {
  it('are published on a diagnostics channel, with their calls', async () => {
    const records: unknown[] = [];
    const listener = (record: unknown) => records.push(record);
    subscribe('kvm-memslots:commit', listener);
    await withMachine(simulated, (machine) => {
      machine.system.add(MemoryRegion.ram(machine.map, 'ram', 0x1000, { memory: machine.allocate(0x1000) }), 0x4000);
    });
    unsubscribe('kvm-memslots:commit', listener);
    expect(records).toMatchObject([
      { number: 1, creates: 1, inhibit: false, calls: [{ kind: 'create', slot: { gpa: 0x4000, size: 0x1000 } }] },
    ]);
  });
});
