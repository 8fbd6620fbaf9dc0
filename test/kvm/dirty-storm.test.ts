import { describe, expect, it } from 'vitest';
import { needsKvm, withMachine } from './backends.js';
import { dirtyStorm } from './dirty-reshaper.js';

describe.each(['simulated', 'kvm'] as const)('the dirty bitmaps of %s, while slots are reshaped', (backend) => {
  // KVM's emulator writes first and sets the bit second, and no reader waits for it.
  const slack = backend === 'kvm';

  it('lose no page in 1,000 rounds', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend }, async (machine) => {
      const report = await dirtyStorm(machine, { kind: 'protected', rounds: 1_000, slack });
      expect(report).toMatchObject({ rounds: 1_000, lost: 0, undone: 125 });
      // Or nothing was tried.
      expect(report.reported).toBeGreaterThan(5_000);
    });
  });

  it('lose pages if bits are discarded: the control', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend, discardDirty: true }, async (machine) => {
      const enough = ({ lost }: { lost: number }) => lost > 0;
      const report = await dirtyStorm(machine, { kind: 'protected', rounds: 1_000, slack, enough });
      expect(report.lost).toBeGreaterThan(0);
    });
  });
});
