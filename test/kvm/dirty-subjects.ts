import type { TestContext } from 'vitest';
import type { Arena } from '../../ts/core/arena.js';
import { createArena } from '../../ts/core/node.js';
import type { Backend } from '../../ts/kvm/backend.js';
import { LinuxBackend } from '../../ts/kvm/linux.js';
import type { MachineOptions } from '../../ts/kvm/machine.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import { needsKvm } from './backends.js';
import type { GuestKind } from './dirty-guest.js';

/** A way to log dirty pages, and how the guests run that write them. */
export interface Subject {
  readonly name: string;
  readonly backend: 'kvm' | 'simulated';
  readonly dirtyLog: 'bitmap' | 'ring';
  readonly guests: GuestKind;
}

export const emulated: readonly Subject[] = [
  { name: 'simulated KVM', backend: 'simulated', dirtyLog: 'bitmap', guests: 'protected' },
  { name: 'KVM with bitmaps and 32-bit guests', backend: 'kvm', dirtyLog: 'bitmap', guests: 'protected' },
];

/** Guests that run natively also where KVM emulates every kernel: only they can't overrun a ring. */
export const native: readonly Subject[] = [
  { name: 'KVM with bitmaps and 64-bit guests', backend: 'kvm', dirtyLog: 'bitmap', guests: 'user' },
  { name: 'KVM with rings and 64-bit guests', backend: 'kvm', dirtyLog: 'ring', guests: 'user' },
];

/** For describe.each: names come first. */
export function named(subjects: readonly Subject[]): [string, Subject][] {
  return subjects.map((subject) => [subject.name, subject]);
}

/** Skips the test, saying why, where the subject can't be had. */
export function needs(context: TestContext, { backend, dirtyLog }: Subject): void {
  needsKvm(context, backend);
  if (dirtyLog === 'bitmap') return;
  try {
    new LinuxBackend(createArena(0x100000), { dirtyLog }).close();
  } catch (error) {
    context.skip((error as Error).message);
  }
}

/** Options for a machine of `subject`. `change` may replace methods of its backend. */
export function optionsOf(subject: Subject, change?: (backend: Backend, arena: Arena) => void): MachineOptions {
  const { backend, dirtyLog } = subject;
  if (change === undefined) return { backend, dirtyLog };
  return {
    backend: (arena) => {
      const made =
        backend === 'kvm'
          ? new LinuxBackend(arena, { dirtyLog })
          : new SimulatedBackend(arena, { callMicroseconds: 0 });
      change(made, arena);
      return made;
    },
  };
}
