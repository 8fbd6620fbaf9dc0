import { spawnSync } from 'node:child_process';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { describe, expect, it } from 'vitest';
import {
  Gate,
  Machine,
  MemoryRegion,
  type MemorySlotsError,
  type PublishedCommit,
  type PublishedWindow,
} from '../../ts/index.js';
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

describe('the library', () => {
  it('prints nothing, whatever goes wrong', () => {
    const program = `
      import { Machine, MemoryRegion } from 'kvm-memslots';
      const machine = await Machine.create({ backend: 'simulated', slots: 1, policy: 'exact' });
      const memory = machine.allocate(0x2000);
      const ram = MemoryRegion.ram(machine.map, 'ram', 0x1000, { memory });
      machine.system.add(ram, 0);
      const errors = [];
      const fails = async (body) => { try { await body(); } catch (error) { errors.push(error.code); } };
      await fails(() => machine.system.add(MemoryRegion.ram(machine.map, 'more', 0x1000, { memory }), 0x8000));
      await fails(() => machine.addVcpu({ steps: [{ kind: 'halt' }] }, { signal: AbortSignal.abort() }));
      const vcpu = await machine.addVcpu({ steps: [{ kind: 'fetch', gpa: 0x5000 }] });
      vcpu.resume();
      errors.push((await vcpu.stopped).reason);
      await machine.close();
      await fails(() => machine.allocate(1));
      process.exitCode = JSON.stringify(errors) === '["CAPACITY","CANCELLED","internal-error","STATE"]' ? 42 : 1;`;
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
      encoding: 'utf8',
    });
    expect([status, stdout, stderr]).toEqual([42, '', '']);
  });
});

/** What is published on `channels` of this project's while `body` runs, in order. */
async function published(channels: readonly string[], body: () => Promise<void>): Promise<[string, unknown][]> {
  const messages: [string, unknown][] = [];
  const listeners = channels.map((name) => [name, (message: unknown) => messages.push([name, message])] as const);
  for (const [name, listener] of listeners) subscribe(`kvm-memslots:${name}`, listener);
  try {
    await body();
  } finally {
    for (const [name, listener] of listeners) unsubscribe(`kvm-memslots:${name}`, listener);
  }
  return messages;
}

describe('diagnostics channels', () => {
  it('carry commits with their calls, and windows before the commits that they were for', async () => {
    let changed: Machine | undefined;
    const messages = await published(['commit', 'window'], () =>
      withMachine({ ...simulated, policy: 'exact' }, (machine) => {
        changed = machine;
        const memory = machine.allocate(0x2000);
        const ram = MemoryRegion.ram(machine.map, 'ram', 0x1000, { memory });
        machine.system.add(ram, 0x4000);
        ram.setSize(0x2000);
      }),
    );
    expect(messages.map(([name]) => name)).toEqual(['commit', 'window', 'commit']);
    const [[, first], [, window], [, second]] = messages as [
      [string, PublishedCommit],
      [string, PublishedWindow],
      [string, PublishedCommit],
    ];
    expect(first).toMatchObject({ number: 1, creates: 1, inhibit: false });
    expect(first.calls).toMatchObject([{ kind: 'create', slot: { gpa: 0x4000, size: 0x1000 } }]);
    expect(second.calls.map(({ kind }) => kind)).toEqual(['delete', 'create']);
    expect(window).toEqual({ machine: changed, microseconds: second.windowMicroseconds, error: undefined });
    expect([first.machine, second.machine]).toEqual([changed, changed]);
  });

  it('carry windows that came to nothing, with what the commit threw', async () => {
    let thrown: unknown;
    const messages = await published(['commit', 'window'], () =>
      withMachine({ ...simulated, policy: 'exact', inhibitor: { timeout: 20 } }, (machine) => {
        const ram = MemoryRegion.ram(machine.map, 'ram', 0x1000, { memory: machine.allocate(0x2000) });
        machine.system.add(ram, 0);
        const gate = Gate.attach(machine.ioctlGate());
        gate.enter();
        try {
          ram.setSize(0x2000);
        } catch (error) {
          thrown = error;
        }
        gate.leave();
      }),
    );
    expect(thrown).toMatchObject({ code: 'TIMEOUT' });
    expect(messages.map(([name]) => name)).toEqual(['commit', 'window']);
    expect((messages[1]![1] as PublishedWindow).error).toBe(thrown);
  });
});
