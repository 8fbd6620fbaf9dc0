import { describe, expect, it } from 'vitest';
import { createArena } from '../../ts/core/node.js';
import { Inhibitor } from '../../ts/kvm/inhibitor.js';
import { withMachine } from '../kvm/backends.js';
import { DeafBackend, errorOf, growingRam, mebibyte, OtherThread, spinningGuest, until } from './helpers.js';

/** A machine with a vCPU that runs and hears no kick, and RAM of 1 MiB whose growth needs a window. */
async function withDeafVcpu(
  timeout: number,
  body: (parts: {
    machine: Parameters<Parameters<typeof withMachine>[1]>[0];
    ram: ReturnType<typeof growingRam>;
    hearAgain: () => void;
  }) => Promise<void>,
): Promise<void> {
  let backend: DeafBackend | undefined;
  const options = {
    backend: (arena: ConstructorParameters<typeof DeafBackend>[0]) => {
      backend = new DeafBackend(arena);
      return backend;
    },
    policy: 'exact' as const,
    inhibitor: { timeout },
  };
  await withMachine(options, async (machine) => {
    const ram = growingRam(machine);
    const vcpu = await machine.addVcpu(spinningGuest(machine));
    vcpu.resume();
    await until(() => vcpu.counters.guestRounds > 0);
    const hearAgain = () => {
      backend!.deaf = false;
    };
    try {
      await body({ machine, ram, hearAgain });
    } finally {
      hearAgain();
    }
  });
}

describe('a commit that has to wait for a vCPU that stays inside', () => {
  it('gives up at its deadline, says who, in which state, and leaves all as it was', async () => {
    await withDeafVcpu(50, async ({ machine, ram, hearAgain }) => {
      const slots = machine.slots();
      const error = errorOf(() => ram.setSize(2 * mebibyte));
      expect(error.code).toBe('TIMEOUT');
      expect(error.message).toMatch(
        /^vCPU 0 \(thread \d+, state [RS] \(\w+\).*\) didn't come out within 50 ms; the gates are open again and nothing was changed$/,
      );
      expect(machine.slots()).toEqual(slots);
      expect(ram.size).toBe(mebibyte);
      const [vcpu] = machine.vcpus;
      const before = vcpu!.counters.guestRounds;
      await until(() => vcpu!.counters.guestRounds > before);
      hearAgain();
      ram.setSize(2 * mebibyte);
      expect(machine.slots().map(({ size }) => size)).toContain(2 * mebibyte);
    });
  });

  it('gives up when another thread cancels it, and the next commit is not cancelled with it', async () => {
    await withDeafVcpu(20_000, async ({ machine, ram, hearAgain }) => {
      const slots = machine.slots();
      const canceller = new OtherThread('cancel', machine.canceller);
      await canceller.begun();
      const error = errorOf(() => ram.setSize(2 * mebibyte));
      expect(error.code).toBe('CANCELLED');
      expect(error.message).toContain('nothing was changed');
      expect(machine.slots()).toEqual(slots);
      expect(await canceller.result).toBe('done');
      hearAgain();
      ram.setSize(2 * mebibyte);
      expect(machine.slots()).not.toEqual(slots);
    });
  });
});

describe('other callers of VM ioctls', () => {
  it('who stay inside make a commit time out, which counts them', async () => {
    await withMachine({ backend: 'simulated', policy: 'exact', inhibitor: { timeout: 30 } }, async (machine) => {
      const ram = growingRam(machine);
      const callers = [1, 2].map(() => new OtherThread('stay', machine.ioctlGate()));
      for (const caller of callers) await caller.begun();
      const error = errorOf(() => ram.setSize(2 * mebibyte));
      expect(error.message).toContain("2 callers of VM ioctls didn't come out within 30 ms");
      for (const caller of callers) caller.end();
      expect(await Promise.all(callers.map(({ result }) => result))).toEqual(['done', 'done']);
      ram.setSize(2 * mebibyte);
    });
  });

  it('who go in and out without a pause let windows through, and get in between them', async () => {
    await withMachine({ backend: 'simulated', policy: 'exact' }, async (machine) => {
      const ram = growingRam(machine);
      const callers = [1, 2, 3].map(() => new OtherThread('pass', machine.ioctlGate()));
      for (const caller of callers) await caller.begun();
      const passed = () => callers.map(({ flags }) => Atomics.load(flags, 2));
      for (let round = 0; round < 50; round++) ram.setSize(round % 2 === 0 ? 2 * mebibyte : mebibyte);
      const before = passed();
      await until(() => passed().every((count, index) => count > before[index]!));
      for (const caller of callers) caller.end();
      await Promise.all(callers.map(({ result }) => result));
    });
  });
});

describe('an inhibitor refuses', () => {
  it('to open a window inside a window, or to add or remove a vCPU there, and goes on', () => {
    const inhibitor = new Inhibitor(createArena(mebibyte));
    const line = inhibitor.allocateLine();
    inhibitor.window(() => {
      expect(errorOf(() => inhibitor.window(() => {}))).toMatchObject({
        code: 'STATE',
        message: "can't inhibit from inside an inhibit window",
      });
      expect(errorOf(() => inhibitor.add(0, line, { kick: () => {} })).code).toBe('STATE');
      expect(errorOf(() => inhibitor.remove(0)).code).toBe('STATE');
      expect(inhibitor.inhibiting).toBe(true);
    });
    expect(inhibitor.inhibiting).toBe(false);
    expect(inhibitor.window(() => 7).result).toBe(7);
  });

  it('to be made off the owner thread', async () => {
    await withMachine({ backend: 'simulated' }, async (machine) => {
      const other = new OtherThread('inhibit', machine.ioctlGate());
      expect(await other.result).toBe('STATE');
    });
  });

  it('options that make no sense', () => {
    const arena = createArena(mebibyte);
    expect(errorOf(() => new Inhibitor(arena, { timeout: Number.NaN })).message).toBe(
      'the inhibit timeout must be 0 or more milliseconds, not NaN',
    );
    expect(errorOf(() => new Inhibitor(arena, { fairnessAge: -1 })).code).toBe('INVALID');
  });

  it('to keep its gates shut when the work throws', () => {
    const inhibitor = new Inhibitor(createArena(mebibyte));
    const boom = new Error('boom');
    expect(errorOf(() => inhibitor.window(() => throwIt(boom)))).toBe(boom);
    expect(inhibitor.common.enter()).toBe(true);
    inhibitor.common.leave();
  });
});

describe('a machine that is closed', () => {
  it('refuses commits however they are made, and everything else, saying so', async () => {
    await withMachine({ backend: 'simulated', policy: 'exact' }, async (machine) => {
      const ram = growingRam(machine);
      await machine.close();
      for (const use of [
        () => ram.setSize(2 * mebibyte),
        () => machine.transaction(() => ram.setSize(2 * mebibyte)),
        () => machine.allocate(mebibyte),
        () => machine.ioctlGate(),
      ]) {
        expect(errorOf(use)).toMatchObject({ code: 'STATE', message: 'this machine is closed' });
      }
      await expect(machine.addVcpu({})).rejects.toMatchObject({ code: 'STATE' });
      expect(ram.size).toBe(mebibyte);
    });
  });
});

function throwIt(error: Error): never {
  throw error;
}
