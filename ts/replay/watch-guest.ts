import type { GuestProgram, HostMemory } from '../kvm/backend.js';
import type { Vcpu } from '../kvm/vcpu-owner.js';
import { userStart } from '../kvm/x86.js';

/**
 * A tiny guest that reads known words at given addresses for ever and counts those it finds wrong: what a hole in its
 * memory does to a guest, made visible. Integer instructions only, so that it runs on any KVM.
 *
 * Each vCPU has a block of guest memory of its own:
 *
 *     +0x0000  machine code
 *     +0x1000  counters: reads, wrong values, rounds, last wrong address (32 bits each)
 *     +0x2000  pairs of address and expected word (32 bits each), ended by address 0
 *     +0x8000  mode `user`: page tables
 */
export const watchBlockBytes = 0x10000;

const countersOffset = 0x1000;
const tableOffset = 0x2000;
const pageTableOffset = 0x8000;
const mostWatched = (pageTableOffset - tableOffset) / 8 - 1;

/** A word that a guest expects at an address: both 32 bits, the address not 0. */
export interface WatchedWord {
  readonly gpa: number;
  readonly value: number;
}

/** What a watching guest has counted. Counters wrap at 2^32. */
export interface WatchCounters {
  readonly reads: number;
  readonly wrongValues: number;
  readonly rounds: number;
}

/**
 * Puts the guest into `memory` at `offset`, which is mapped at `gpa` for as long as it runs; what addVcpu wants. In mode
 * `user` it runs natively also where KVM emulates kernels.
 */
export function placeWatchGuest(
  memory: HostMemory,
  offset: number,
  gpa: number,
  watched: readonly WatchedWord[],
  mode: 'protected' | 'user' = 'protected',
): GuestProgram {
  const block = memory.bytes(offset, watchBlockBytes);
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  block.fill(0);
  block.set(machineCode(gpa));
  const words = watched.slice(0, mostWatched);
  for (const [index, { gpa: address, value }] of words.entries()) {
    view.setUint32(tableOffset + index * 8, address, true);
    view.setUint32(tableOffset + index * 8 + 4, value, true);
  }
  return {
    start:
      mode === 'user' ? userStart(block.subarray(pageTableOffset), gpa + pageTableOffset, gpa) : { mode, entry: gpa },
    steps: words.map(({ gpa: address, value }) => ({ kind: 'check', gpa: address, size: 4, expected: value })),
  };
}

/** Reads the counters of the guest in `memory` at `offset`, or, of a simulated one, its vCPU's. */
export function readWatchCounters(simulated: boolean, vcpu: Vcpu, memory: HostMemory, offset: number): WatchCounters {
  if (simulated) {
    const { guestReads, guestWrongValues, guestRounds } = vcpu.counters;
    return { reads: guestReads, wrongValues: guestWrongValues, rounds: guestRounds };
  }
  const block = memory.bytes(offset + countersOffset, 12);
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  return {
    reads: view.getUint32(0, true),
    wrongValues: view.getUint32(4, true),
    rounds: view.getUint32(8, true),
  };
}

/**
 * The same bytes in 32-bit code and in 64-bit code, where registers that hold addresses are zero-extended. Labels are
 * resolved by hand: the jumps' distances stand in the comments.
 */
function machineCode(gpa: number): Uint8Array {
  const word = (value: number) => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
  const code = [
    ...[0xbb, ...word(gpa + countersOffset)], //  0        mov ebx, counters
    ...[0xbe, ...word(gpa + tableOffset)], //     5 start: mov esi, table
    ...[0x8b, 0x3e], //                          10 next:  mov edi, [esi]
    ...[0x85, 0xff], //                          12        test edi, edi
    ...[0x74, 0x14], //                          14        jz round (36)
    ...[0x8b, 0x07], //                          16        mov eax, [edi]
    ...[0x3b, 0x46, 0x04], //                    18        cmp eax, [esi + 4]
    ...[0x74, 0x06], //                          21        je right (29)
    ...[0xff, 0x43, 0x04], //                    23        inc dword [ebx + 4]: wrong values
    ...[0x89, 0x7b, 0x0c], //                    26        mov [ebx + 12], edi: last wrong address
    ...[0xff, 0x03], //                          29 right: inc dword [ebx]: reads
    ...[0x83, 0xc6, 0x08], //                    31        add esi, 8
    ...[0xeb, 0xe6], //                          34        jmp next (10)
    ...[0xff, 0x43, 0x08], //                    36 round: inc dword [ebx + 8]: rounds
    ...[0xeb, 0xdc], //                          39        jmp start (5)
  ];
  return Uint8Array.from(code);
}

/** Writes a little-endian 32-bit word into guest memory, at `offset` bytes. */
export function writeWord(memory: HostMemory, offset: number, value: number): void {
  const bytes = memory.bytes(offset, 4);
  new DataView(bytes.buffer, bytes.byteOffset, 4).setUint32(0, value, true);
}
