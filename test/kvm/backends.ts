import { closeSync, openSync } from 'node:fs';
import type { TestContext } from 'vitest';
import { Machine, type MachineOptions } from '../../ts/kvm/machine.js';

/** Both backends, for describe.each. */
export const backends = ['kvm', 'simulated'] as const;

/** Skips the test, saying why, where it needs a real KVM and there is none. */
export function needsKvm(context: TestContext, backend: string): void {
  if (backend !== 'kvm') return;
  try {
    closeSync(openSync('/dev/kvm', 'r+'));
  } catch (error) {
    context.skip(`/dev/kvm can't be opened: ${(error as Error).message}`);
  }
}

/** Runs `body` with a machine that is closed afterwards, whatever happens. Simulated calls take no time. */
export async function withMachine<Result>(
  options: MachineOptions,
  body: (machine: Machine) => Promise<Result> | Result,
): Promise<Result> {
  const machine = await Machine.create({ ...options, simulated: { callMicroseconds: 0, ...options.simulated } });
  try {
    return await body(machine);
  } finally {
    await machine.close();
  }
}
