import type { GuestProgram, HostMemory } from '../../ts/kvm/backend.js';

/** Where the list of words to write starts in the guest's memory. */
const listOffset = 0x1000;

/**
 * A guest that writes `value` to each of `addresses` (multiples of 4, not 0), then halts, or starts over if `forever`.
 * Its code and list go to the start of `memory`, which is to be mapped at `gpa`.
 */
export function placeWriteGuest(
  memory: HostMemory,
  gpa: number,
  addresses: readonly number[],
  value: number,
  forever = false,
): GuestProgram {
  const list = memory.bytes(listOffset, memory.size - listOffset);
  const words = new DataView(list.buffer, list.byteOffset, list.byteLength);
  for (const [index, word] of [value, ...addresses, 0].entries()) words.setUint32(index * 4, word, true);
  const table = gpa + listOffset;
  memory.bytes(0, 23).set([
    ...[0xbe, table & 0xff, (table >>> 8) & 0xff, (table >>> 16) & 0xff, table >>> 24], //  0 start: mov esi, list
    ...[0x8b, 0x1e], //                                                                      5        mov ebx, [esi]
    ...[0x83, 0xc6, 0x04], //                                                                7 next:  add esi, 4
    ...[0x8b, 0x3e], //                                                                     10        mov edi, [esi]
    ...[0x85, 0xff], //                                                                     12        test edi, edi
    ...[0x74, 0x04], //                                                                     14        jz done (20)
    ...[0x89, 0x1f], //                                                                     16        mov [edi], ebx
    ...[0xeb, 0xf3], //                                                                     18        jmp next (7)
    ...[forever ? 0x90 : 0xf4], //                                                          20 done:  nop, or hlt
    ...[0xeb, 0xe9], //                                                                     21        jmp start (0)
  ]);
  const writes = addresses.map((address) => ({ kind: 'write', gpa: address, size: 4, value }) as const);
  return {
    start: { mode: 'protected', entry: gpa },
    steps: forever ? writes : [...writes, { kind: 'halt' }],
  };
}
