import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { errnoName } from '../../ts/core/core.js';
import { createArena } from '../../ts/core/node.js';
import { gateLineBytes } from '../../ts/kvm/gate.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import type { RegionRequest } from '../../ts/kvm/simulated-request.js';
import type { Kernel } from './kvm-calls.js';
import { kvmMissing, type RealKernel } from './kvm-real.js';
import { realSubject } from './kvm-subjects.js';

/** The recorded calls: number, what was asked, and the result as an errno's name or a number. */
const recorded = readFileSync(new URL('../data/errno-measured.txt', import.meta.url), 'utf8')
  .split('\n')
  .flatMap((line) => {
    const match = /^ *(\d+) \| (.*?) *\| (\S+)$/.exec(line);
    return match === null ? [] : [{ number: Number(match[1]), label: match[2]!, result: match[3]! }];
  });

const page = 4096;
const gibibyte = 2 ** 30;

/** What the calls are made on. */
interface Host {
  readonly kernel: Kernel;
  /** The VM's own file descriptor, or another that is no guest_memfd. */
  readonly ordinaryFile: number;
  readonly foreignGuestMemfd: number;
  createVcpu(): void;
  /** Calls that this host can't make, by number, with the reason. */
  readonly excepted: ReadonlyMap<number, string>;
  /** Row 66: on the descriptor of /dev/kvm instead of the VM's. */
  onKvmDescriptor(region: RegionRequest): number;
  /** Row 71: by a process that didn't create the VM. */
  byAnotherProcess(region: RegionRequest): number;
}

/** The calls by their number in the recording; each relies on the ones before it. */
function measuredCalls(host: Host): Map<number, () => number> {
  const { kernel } = host;
  const slots = 32_764;
  const memory = 0x7000_0000_0000;
  const zero: RegionRequest = { slot: 0, flags: 0, gpa: 0, size: 16 * page, host: memory };
  const one: RegionRequest = { ...zero, slot: 1, gpa: 16 * page };
  const spare: RegionRequest = { ...zero, slot: 2, gpa: gibibyte };
  let guestMemfd = -1;
  const set = (region: RegionRequest): number => kernel.setUserMemoryRegion(region);
  const set2 = (region: RegionRequest): number => kernel.setUserMemoryRegion2(region);
  const remove = (region: RegionRequest): number => set({ ...region, size: 0 });
  /** A call that changes nothing in the end. */
  const undone = (region: RegionRequest): number => {
    const result = set(region);
    if (result === 0) remove(region);
    return result;
  };
  /** A call on slot 1, which the recording made anew for it. */
  const onOne = (change: Partial<RegionRequest>): number => {
    set(one);
    return set({ ...one, size: 0, ...change });
  };
  const shared = (change: Partial<RegionRequest>): number =>
    set2({ ...spare, flags: 4, guestMemfd, guestMemfdOffset: 0, ...change });
  const second = { slot: 3, gpa: 2 * gibibyte, guestMemfdOffset: 16 * page };

  return new Map([
    [1, () => set(zero)],
    [2, () => set(zero)],
    [3, () => set({ ...zero, flags: 1 })],
    [4, () => set(zero)],
    [5, () => set({ ...zero, flags: 2 })],
    [6, () => set({ ...zero, size: 17 * page })],
    [7, () => set({ ...zero, size: 15 * page })],
    [8, () => set({ ...zero, host: memory + page })],
    [9, () => set({ ...zero, gpa: 0x100000 })],
    [10, () => set({ ...zero, flags: 1 })],
    [11, () => set(zero)],
    [12, () => set({ ...zero, gpa: 4 * page })],
    [13, () => set(zero)],
    [14, () => set({ ...one, gpa: 0 })],
    [15, () => set({ ...one, gpa: 15 * page, size: 2 * page })],
    [16, () => set(one)],
    [17, () => set({ ...one, gpa: 0 })],
    [18, () => set({ ...spare, size: page + 1 })],
    [19, () => set({ ...spare, gpa: gibibyte + 1 })],
    [20, () => set({ ...spare, host: memory + 1 })],
    [21, () => set({ ...spare, host: 0 })],
    [22, () => remove({ ...spare, host: 0 })],
    [23, () => set({ ...spare, host: 0xffff_8000_0000_0000n })],
    [24, () => set({ ...spare, host: 1n << 62n })],
    [25, () => set({ ...spare, host: 0x10000 })],
    [26, () => remove(spare)],
    [27, () => set({ ...spare, host: 0x7fff_ffff_f000 - page, size: 2 * page })],
    [28, () => set({ ...spare, gpa: (1n << 64n) - 4096n, size: 2 * page })],
    [29, () => set({ ...spare, gpa: (1n << 64n) - 4096n, size: page })],
    [30, () => set({ ...spare, gpa: 2 ** 52 })],
    [31, () => undone({ ...spare, gpa: 2 ** 51 })],
    [32, () => undone({ ...spare, gpa: 2 ** 46 })],
    [33, () => set({ ...spare, size: (2 ** 31 - 1) * page, host: 0 })],
    [34, () => remove(spare)],
    [35, () => set({ ...spare, size: 2 ** 31 * page, host: 0 })],
    [36, () => remove({ ...spare, slot: 7 })],
    [37, () => onOne({ gpa: 0x123_4000, host: 0x567_8000 })],
    [38, () => onOne({ gpa: 1 })],
    [39, () => onOne({ host: 1 })],
    [40, () => onOne({ host: 0xffff_8000_0000_0000n })],
    [41, () => onOne({ flags: 2 })],
    [42, () => onOne({ flags: 8 })],
    [43, () => remove(one)],
    [44, () => remove(one)],
    [45, () => set({ ...spare, slot: slots - 1 })],
    [46, () => remove({ ...spare, slot: slots - 1 })],
    [47, () => set({ ...spare, slot: slots })],
    [48, () => set({ ...spare, slot: 0x7fff })],
    [49, () => set({ ...spare, slot: 0xffff })],
    [50, () => set({ ...spare, slot: 0x10000 })],
    [51, () => set({ ...spare, slot: 0x20000 })],
    [52, () => set({ ...spare, flags: 4 })],
    [53, () => set({ ...spare, flags: 8 })],
    [54, () => set2({ ...spare, flags: 2 ** 31 })],
    [55, () => set({ ...spare, flags: 2 })],
    [56, () => set({ ...spare, flags: 3 })],
    [57, () => set({ ...spare, flags: 1 })],
    [58, () => set({ ...spare, flags: 3, gpa: 2 * gibibyte })],
    [59, () => remove(spare)],
    [60, () => set2(spare)],
    [61, () => set2({ ...spare, size: 0 })],
    [62, () => set({ ...spare, flags: 8, size: page + 1 })],
    [63, () => set({ ...zero, slot: slots })],
    [64, () => set({ ...zero, size: 32 * page })],
    [65, () => kernel.setUserMemoryRegion(null)],
    [66, () => host.onKvmDescriptor(spare)],
    [67, () => kernel.getDirtyLog(0, new Uint8Array(8))],
    [68, () => kernel.getDirtyLog(9, new Uint8Array(8))],
    [69, () => kernel.getDirtyLog(0x7fff, new Uint8Array(8))],
    [
      70,
      () => {
        set({ ...zero, flags: 1 });
        return kernel.getDirtyLog(0, new Uint8Array(8));
      },
    ],
    [71, () => host.byAnotherProcess(zero)],
    [72, () => shared({ guestMemfd: -1 })],
    [73, () => shared({ guestMemfd: host.ordinaryFile })],
    [74, () => shared({ flags: 5 })],
    [75, () => shared({ flags: 6 })],
    [76, () => shared({ guestMemfdOffset: 1 })],
    [77, () => shared({ guestMemfdOffset: (1n << 64n) - 4096n })],
    [
      78,
      () => {
        guestMemfd = kernel.createGuestMemfd(32 * page);
        expect(guestMemfd).toBeGreaterThanOrEqual(0);
        return shared({ guestMemfdOffset: 17 * page });
      },
    ],
    [79, () => shared({})],
    [80, () => shared({})],
    [81, () => shared({ gpa: 2 * gibibyte })],
    [82, () => shared({ flags: 0 })],
    [83, () => shared({ ...second, guestMemfdOffset: 0 })],
    [84, () => shared({ ...second, gpa: spare.gpa })],
    [85, () => shared(second)],
    [86, () => shared({ ...second, size: 0, guestMemfd: -1 })],
    [87, () => shared({ ...second, guestMemfd: host.foreignGuestMemfd })],
    [
      88,
      () => {
        host.createVcpu();
        return set(one);
      },
    ],
    [89, () => remove(one)],
    [90, () => set({ ...one, gpa: 0xfee0_0000 })],
  ]);
}

/** Makes the calls and compares them, line by line, with the recording. */
function mustGiveRecordedResults(host: Host): void {
  const calls = measuredCalls(host);
  expect([...calls.keys()]).toEqual(recorded.map(({ number }) => number));
  const lines = (results: (number: number, recorded: string) => string): string[] =>
    recorded.map(({ number, label, result }) => `${number} ${label}: ${results(number, result)}`);
  const actual = lines((number) => {
    const excepted = host.excepted.get(number);
    const result = excepted === undefined ? calls.get(number)!() : 0;
    return excepted ?? (result < 0 ? errnoName(result) : String(result));
  });
  expect(actual).toEqual(lines((number, result) => host.excepted.get(number) ?? result));
}

describe('the 90 measured calls give the recorded results', () => {
  test('on the simulated KVM, but for one that needs a second kind of descriptor', () => {
    const arena = createArena(24 * 2 ** 20);
    const backend = new SimulatedBackend(arena, { callMicroseconds: 0, backed: false });
    const { kernel } = backend;
    mustGiveRecordedResults({
      kernel,
      ordinaryFile: kernel.files.createOther(),
      foreignGuestMemfd: kernel.files.createGuestMemfd({}, gibibyte),
      createVcpu: () => void backend.createVcpu(0, arena.allocate(gateLineBytes), { steps: [] }),
      excepted: new Map([[66, 'there is no descriptor of /dev/kvm to make it on']]),
      onKvmDescriptor: () => 0,
      byAnotherProcess: (region) => {
        const forked = new SimulatedBackend(createArena(24 * 2 ** 20), { callMicroseconds: 0, backed: false }).kernel;
        forked.kill();
        return forked.setUserMemoryRegion(region);
      },
    });
  });

  test('on /dev/kvm, but for one that takes a minute and one that needs a fork', (context) => {
    const missing = kvmMissing();
    if (missing !== undefined) context.skip(missing);
    const subject = realSubject();
    const kernel = subject.kernel as RealKernel;
    const excepted = new Map([[71, 'Node has no fork()']]);
    if (process.env.MEMSLOTS_SLOW === undefined) {
      excepted.set(33, 'takes a shadow-paging host a minute: set MEMSLOTS_SLOW to make it');
      excepted.set(34, 'there is nothing to delete without call 33');
    }
    try {
      mustGiveRecordedResults({
        kernel,
        ordinaryFile: kernel.vm,
        foreignGuestMemfd: subject.foreignGuestMemfd,
        createVcpu: () => kernel.createVcpu(0),
        excepted,
        onKvmDescriptor: (region) => kernel.setUserMemoryRegion(region, kernel.kvm),
        byAnotherProcess: () => 0,
      });
    } finally {
      subject.close();
    }
  });
});
