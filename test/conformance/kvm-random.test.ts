import { describe, expect, test } from 'vitest';
import { profileOf } from '../../ts/kvm/simulated-profiles.js';
import type { RegionRequest } from '../../ts/kvm/simulated-request.js';
import type { Subject } from './kvm-calls.js';
import { compare, describe as describeMismatch } from './kvm-compare.js';
import { kvmMissing, RealKernel } from './kvm-real.js';
import { realSubject, simulatedSubject } from './kvm-subjects.js';

const x86 = profileOf('x86');

/** A simulated kernel with a mistake: it says it deleted slot 3, and didn't. */
function forgetfulSubject(): Subject {
  const subject = simulatedSubject({});
  const forgets = (region: RegionRequest | null): boolean =>
    region?.slot === 3 && region.size === 0n && region.flags === 0;
  const { kernel } = subject;
  return {
    ...subject,
    kernel: {
      setUserMemoryRegion: (region) => (forgets(region) ? 0 : kernel.setUserMemoryRegion(region)),
      setUserMemoryRegion2: (region) => kernel.setUserMemoryRegion2(region),
      getDirtyLog: (slot, bitmap) => kernel.getDirtyLog(slot, bitmap),
      clearDirtyLog: (slot, first, pages, bitmap) => kernel.clearDirtyLog(slot, first, pages, bitmap),
      enableManualDirtyLog: (value) => kernel.enableManualDirtyLog(value),
      createGuestMemfd: (size) => kernel.createGuestMemfd(size),
    },
  };
}

describe('20,000 random calls', () => {
  test('get the same answers from the simulated KVM and from /dev/kvm', (context) => {
    const missing = kvmMissing();
    if (missing !== undefined) context.skip(missing);
    const options = RealKernel.hostOptions();
    const { mismatch } = compare([() => simulatedSubject(options), realSubject], options, 20_000, 1);
    expect(mismatch && describeMismatch(mismatch, ['simulated', 'kvm'])).toBeUndefined();
  });

  test('find a rule that is off by one, and show it by a single call', () => {
    const narrow = { physicalAddressBits: x86.physicalAddressBits - 1 };
    const { mismatch } = compare([() => simulatedSubject({}), () => simulatedSubject(narrow)], x86, 20_000, 1);
    expect(mismatch?.calls).toHaveLength(1);
    expect(mismatch?.answers).toEqual(['0', 'EINVAL']);
  });

  test('find a mistake that shows only later, and show it by the shortest sequence', () => {
    const { calls, mismatch } = compare([() => simulatedSubject({}), forgetfulSubject], x86, 20_000, 1);
    expect(calls).toBeGreaterThan(3);
    expect(mismatch?.calls.length).toBeLessThanOrEqual(3);
    expect(mismatch && describeMismatch(mismatch, ['right', 'wrong'])).toMatch(/slot 0x3[\s\S]*right: [\s\S]*wrong: /);
  });
});
