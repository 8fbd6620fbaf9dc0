import { describe, expect, it } from 'vitest';
import { backends, needsKvm, withMachine } from '../kvm/backends.js';
import { growingRam, mebibyte, spinningGuest, until } from './helpers.js';
import { preloading } from './preload.js';

const crash = new URL('crash.mjs', import.meta.url);

describe.each(backends)('vCPUs on %s', (backend) => {
  it('come and go while others run and commits flow', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend, policy: 'exact' }, async (machine) => {
      const ram = growingRam(machine);
      const guest = spinningGuest(machine);
      const steady = await machine.addVcpu(guest);
      steady.resume();
      let commits = 0;
      let storm = true;
      const stormEnd = (async () => {
        while (storm) {
          ram.setSize(commits++ % 2 === 0 ? 2 * mebibyte : mebibyte);
          await new Promise((resolve) => setImmediate(resolve));
        }
      })();
      try {
        for (let round = 0; round < 6; round++) {
          const added = await Promise.all([machine.addVcpu(guest), machine.addVcpu(guest)]);
          expect(added.map(({ index }) => index).sort()).toEqual([1, 2]);
          for (const vcpu of added) vcpu.resume();
          const [entries, before] = [steady.counters.entries, commits];
          await until(() => added.every(({ counters }) => counters.entries > 1) && commits > before + 4);
          await until(() => steady.counters.entries > entries);
          await Promise.all(added.map((vcpu) => vcpu.end()));
          expect(machine.vcpus).toEqual([steady]);
        }
      } finally {
        storm = false;
        await stormEnd;
      }
    });
  });

  it.for(['throws', 'exits', 'vanishes'])(
    'whose thread %s inside its gate let the commit that waits for them go on, and the owner learns of it',
    async (way, context) => {
      needsKvm(context, backend);
      const options = { backend, policy: 'exact' as const, inhibitor: { timeout: 20_000 } };
      await withMachine(options, async (machine) => {
        const ram = growingRam(machine);
        const guest = spinningGuest(machine);
        const sound = await machine.addVcpu(guest);
        const doomed = await preloading(crash, { MEMSLOTS_TEST_CRASH: way }, () => machine.addVcpu(guest));
        for (const vcpu of [sound, doomed]) vcpu.resume();
        await until(() => sound.counters.entries > 0 && doomed.counters.entries > 0);

        ram.setSize(2 * mebibyte);
        expect(machine.slots().map(({ size }) => size)).toContain(2 * mebibyte);
        expect(doomed.hasEnded).toBe(true);

        expect(await doomed.stopped).toMatchObject({ reason: 'crashed', detail: way === 'throws' ? 1 : 3 });
        expect(doomed.error?.message).toMatch(
          way === 'throws' ? 'boom' : 'the thread of vCPU 1 ended with exit code 3 without having been told to',
        );
        await until(() => machine.vcpus.length === 1);
        const entries = sound.counters.entries;
        ram.setSize(mebibyte);
        await until(() => sound.counters.entries > entries);

        const successor = await machine.addVcpu(guest);
        expect(successor.index).toBe(1);
        successor.resume();
        await until(() => successor.counters.entries > 0);
        ram.setSize(2 * mebibyte);
        await doomed.end();
      });
    },
  );
});
