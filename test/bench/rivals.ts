import { createRequire } from 'node:module';
import type { Arena } from '../../ts/core/arena.js';
import { addressOf, loadNativeLibrary, type NativeLibrary } from '../../ts/core/native.js';

/** The functions of rivals.h. Places are addresses, as {@link Rivals.address} gives them. */
export interface Rivals {
  readonly native: NativeLibrary;
  stay(stay: number): number;
  threadTime(): number;
  /** Where native code sees offset `offset` of an arena. */
  address(arena: Arena, offset: number): number;
  findLinear(slots: number, slotCount: number, gpas: number, ids: number, count: number): number;
  findBranchy(
    starts: number,
    ends: number,
    ids: number,
    slotCount: number,
    gpas: number,
    out: number,
    n: number,
  ): number;
  findBranchless(
    starts: number,
    ends: number,
    ids: number,
    slotCount: number,
    gpas: number,
    out: number,
    n: number,
  ): number;
  findSingly(table: number, gpas: number, count: number): number;
  lookUpSingly(map: number, gpas: number, count: number, out: number): number;
  plan(
    slots: number,
    slotCount: number,
    deletes: number,
    deleteCount: number,
    adds: number,
    addCount: number,
    operations: number,
  ): number;
  gate(word: number, count: number): number;
  vmOpen(vm: number): number;
  vmStart(vm: number, entry: number): number;
  vmPrepare(vm: number, entry: number): number;
  vmResume(vm: number): number;
  vmPause(vm: number): number;
  vmSet(vm: number, regions: number, count: number): number;
  vmSetInWindow(vm: number, regions: number, count: number): number;
  vmRoundTrips(vm: number, count: number): number;
  vmClose(vm: number): void;
  begin(mailbox: number, start: number, pages: number, write: number, repeat: number): void;
  end(mailbox: number): number;
  discard(host: number, size: number, chunk: number): number;
}

let loaded: Rivals | undefined;

/** Loads test/artefacts/rivals.so. */
export function loadRivals(): Rivals {
  if (loaded !== undefined) return loaded;
  const native = loadNativeLibrary();
  const library = native.koffi.load(new URL('../artefacts/rivals.so', import.meta.url).pathname);
  const call = (result: string, name: string, parameters: string) =>
    library.func(`${result} rival_${name}(${parameters})`) as (...values: number[]) => number;
  const [p, n] = ['uintptr_t', 'uint32_t'];
  const search = [p, p, p, n, p, p, n].join();
  loaded = {
    native,
    stay: call('int32_t', 'stay', 'int32_t'),
    threadTime: call('double', 'thread_time', 'void'),
    address: (arena, offset) => addressOf(arena) + offset,
    findLinear: call('int32_t', 'find_linear', [p, n, p, p, n].join()),
    findBranchy: call('int32_t', 'find_branchy', search),
    findBranchless: call('int32_t', 'find_branchless', search),
    findSingly: call('int32_t', 'find_singly', [p, p, n].join()),
    lookUpSingly: call('int32_t', 'look_up_singly', [p, p, n, p].join()),
    plan: call('int32_t', 'plan', [p, n, p, n, p, n, p].join()),
    gate: call('int32_t', 'gate', [p, n].join()),
    vmOpen: call('int32_t', 'vm_open', p),
    vmStart: call('int32_t', 'vm_start', [p, n].join()),
    vmPrepare: call('int32_t', 'vm_prepare', [p, n].join()),
    vmResume: call('int32_t', 'vm_resume', p),
    vmPause: call('int32_t', 'vm_pause', p),
    vmSet: call('int32_t', 'vm_set', [p, p, n].join()),
    vmSetInWindow: call('int32_t', 'vm_set_in_window', [p, p, n].join()),
    vmRoundTrips: call('int32_t', 'vm_round_trips', [p, n].join()),
    vmClose: call('void', 'vm_close', p),
    begin: call('void', 'begin', [p, n, n, n, n].join()),
    end: call('int32_t', 'end', p),
    discard: call('int32_t', 'discard', 'uint64_t, uint64_t, uint64_t'),
  };
  return loaded;
}

/** A package that is only compared with, or undefined where it isn't installed. */
export function optionalPackage<Module>(name: string): Module | undefined {
  try {
    return createRequire(import.meta.url)(name) as Module;
  } catch {
    return undefined;
  }
}
