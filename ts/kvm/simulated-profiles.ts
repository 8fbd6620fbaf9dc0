import { errno } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';

/** The architectures whose rules the simulated KVM knows. `x86-smm` has a second address space, for SMM. */
export type ProfileName = 'x86' | 'x86-smm' | 'arm64' | 'riscv' | 's390';

/** What differs between architectures, and between hosts of one architecture. Sizes and addresses in bytes. */
export interface Profile {
  readonly name: ProfileName;
  /** KVM_CAP_NR_MEMSLOTS: slots an address space may hold; ids are below it. */
  readonly slots: number;
  readonly addressSpaces: number;
  readonly pageSize: number;
  /** What host memory must be aligned to. */
  readonly slotAlignment: number;
  readonly readonlyMemory: boolean;
  readonly guestMemfd: boolean;
  /** KVM_CLEAR_DIRTY_LOG and manual protection exist. */
  readonly manualDirtyLog: boolean;
  /** Width of guest-physical addresses. */
  readonly physicalAddressBits: number;
  /** A host range may end here at the latest. */
  readonly hostLimit: number;
  /**
   * What the architecture's own check says to a slot that passed all others: 0 or a negative errno. In the kernel it is
   * the last to be asked.
   */
  readonly refuses: (gpa: number, size: number, host: number, physicalAddressBits: number) => number;
}

const mebibyte = 2 ** 20;

const x86: Profile = {
  name: 'x86',
  slots: 32_764,
  addressSpaces: 1,
  pageSize: 4096,
  slotAlignment: 4096,
  readonlyMemory: true,
  guestMemfd: true,
  manualDirtyLog: true,
  // What shadow paging gives; with two-dimensional paging it is the processor's own width.
  physicalAddressBits: 52,
  hostLimit: 2 ** 47 - 4096,
  refuses: (gpa, size, _host, bits) => (gpa + size > 2 ** bits ? -errno.EINVAL : 0),
};

/** What slots must be aligned to beyond the page size, in bytes, by Node's name of the architecture. */
export const slotAlignments: Readonly<Record<string, number>> = { s390x: mebibyte };

const profiles: Record<ProfileName, Profile> = {
  x86,
  'x86-smm': { ...x86, name: 'x86-smm', addressSpaces: 2 },
  arm64: {
    ...x86,
    name: 'arm64',
    slots: 32_767,
    physicalAddressBits: 40,
    hostLimit: 2 ** 48,
    refuses: (gpa, size, _host, bits) => (gpa + size > 2 ** bits ? -errno.EFAULT : 0),
  },
  riscv: {
    ...x86,
    name: 'riscv',
    slots: 32_767,
    guestMemfd: false,
    physicalAddressBits: 50,
    refuses: (gpa, size, _host, bits) => (gpa + size >= 2 ** bits ? -errno.EFAULT : 0),
  },
  s390: {
    ...x86,
    name: 's390',
    slots: 32_767,
    slotAlignment: mebibyte,
    readonlyMemory: false,
    guestMemfd: false,
    manualDirtyLog: false,
    hostLimit: 2 ** 53 - 4096,
    refuses: (gpa, size, host) => ([gpa, size, host].every((value) => value % mebibyte === 0) ? 0 : -errno.EINVAL),
  },
};

/** The profile of that name. Throws `INVALID` for one there isn't. */
export function profileOf(name: ProfileName): Profile {
  if (!Object.hasOwn(profiles, name)) {
    throw new MemorySlotsError('INVALID', `a profile is one of ${Object.keys(profiles).join(', ')}, not '${name}'`);
  }
  return profiles[name];
}
