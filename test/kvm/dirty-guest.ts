import type { GuestProgram, HostMemory } from '../../ts/kvm/backend.js';
import type { Machine } from '../../ts/kvm/machine.js';
import { pageTableBytes, userStart } from '../../ts/kvm/x86.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { randomFrom } from '../../ts/testing/random.js';

export const pageBytes = 0x1000;
/** Where guests' code and page tables are mapped, never logged. One block a guest. */
const codeAddress = 0x30000000;
const blockBytes = pageBytes + pageTableBytes;

/** How a guest is to run: emulated (32-bit) or, where KVM emulates kernels, natively (64-bit at privilege level 3). */
export type GuestKind = 'protected' | 'user';

export const little = (value: number) => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];

/**
 * Code that writes a counter to the starts of random pages for ever: the same bytes in 32-bit and 64-bit code, for
 * `count` pages (a power of two) from `gpa`. It counts `pause` down after each write.
 */
function randomWriter(gpa: number, count: number, seed: number, pause: number): number[] {
  return [
    ...[0xbb, ...little(seed)], //              0 mov ebx, seed
    ...[0xb9, ...little(seed << 24)], //        5 mov ecx, so that guests' counters differ
    ...[0x69, 0xdb, ...little(1664525)], //    10 next: imul ebx, ebx, 1664525
    ...[0x81, 0xc3, ...little(1013904223)], // 16 add ebx, 1013904223
    ...[0x89, 0xd8], //                        22 mov eax, ebx
    ...[0xc1, 0xe8, 0x0c], //                  24 shr eax, 12: the lower bits aren't random enough
    ...[0x25, ...little(count - 1)], //        27 and eax, count - 1
    ...[0xc1, 0xe0, 0x0c], //                  32 shl eax, 12
    ...[0x05, ...little(gpa)], //              35 add eax, gpa
    ...[0xff, 0xc1], //                        40 inc ecx
    ...[0x89, 0x08], //                        42 mov [eax], ecx
    ...[0xba, ...little(pause)], //            44 mov edx, pause
    ...[0xff, 0xca], //                        49 dec edx
    ...[0x75, 0xfc], //                        51 jnz (53 - 4 = 49)
    ...[0xeb, 0xd3], //                        53 jmp next (55 - 45 = 10)
  ];
}

/** Code that writes to each of `count` pages from `gpa` once, in order, and then jumps on the spot. */
function sweeper(gpa: number, count: number, value: number): number[] {
  return [
    ...[0xb8, ...little(gpa)], //             0 mov eax, gpa
    ...[0xb9, ...little(value)], //           5 mov ecx, value
    ...[0xba, ...little(count)], //          10 mov edx, count
    ...[0x89, 0x08], //                      15 next: mov [eax], ecx
    ...[0x05, ...little(pageBytes)], //      17 add eax, 4096
    ...[0xff, 0xca], //                      22 dec edx
    ...[0x75, 0xf5], //                      24 jnz next (26 - 11 = 15)
    ...[0xeb, 0xfe], //                      26 jmp $
  ];
}

/** Puts `code` into guest memory of its own, with page tables where it wants them. */
export function place(
  machine: Machine,
  index: number,
  kind: GuestKind,
  code: readonly number[],
): GuestProgram['start'] {
  const memory = machine.allocate(blockBytes);
  const gpa = codeAddress + index * blockBytes;
  memory.bytes(0, code.length).set(code);
  machine.system.add(MemoryRegion.ram(machine.map, `code ${index}`, blockBytes, { memory }), gpa);
  if (kind === 'protected') return { mode: 'protected', entry: gpa };
  return userStart(memory.bytes(pageBytes, blockBytes - pageBytes), gpa + pageBytes, gpa);
}

/** Guest `index` (from 1), which writes a counter to random ones of `count` pages from `gpa`, for ever. */
export function randomWriterGuest(
  machine: Machine,
  index: number,
  kind: GuestKind,
  gpa: number,
  count: number,
): GuestProgram {
  const random = randomFrom(index);
  // Slow enough that not every page is written again before anybody looks.
  const pause = kind === 'protected' ? 1 : 300;
  return {
    start: place(machine, index, kind, randomWriter(gpa, count, index, pause))!,
    steps: Array.from({ length: 32 * count }, (_, step) => ({
      kind: 'write' as const,
      gpa: gpa + Math.floor(random() * count) * pageBytes,
      size: 4,
      value: index * 0x1000000 + step + 1,
    })),
  };
}

/** Guest `index` (from 1), which writes `value` to each of `count` pages from `gpa`, and does nothing from then on. */
export function sweepingGuest(
  machine: Machine,
  index: number,
  kind: GuestKind,
  gpa: number,
  count: number,
  value: number,
): GuestProgram {
  return {
    start: place(machine, index, kind, sweeper(gpa, count, value))!,
    steps: Array.from({ length: count }, (_, page) => ({
      kind: 'write' as const,
      gpa: gpa + page * pageBytes,
      size: 4,
      value,
    })),
  };
}

/** A guest of one instruction, which writes `value` (32 bits) at `gpa`, and stops: see {@link stopReason}. */
export function oneWriteGuest(
  machine: Machine,
  index: number,
  kind: GuestKind,
  gpa: number,
  value: number,
): GuestProgram {
  // mov dword [gpa], value (in the form that isn't relative to rip); hlt
  const code = [0xc7, 0x04, 0x25, ...little(gpa), ...little(value), 0xf4];
  return {
    start: place(machine, index, kind, code)!,
    steps: [{ kind: 'write', gpa, size: 4, value }, { kind: 'halt' }],
  };
}

/** What KVM says of a guest that halts: only a kernel may, and nobody handles the fault. */
export const stopReason: Record<GuestKind, string> = { protected: 'halt', user: 'shutdown' };

/**
 * What a reader of the dirty log knows of a memory. Whenever pages are taken, every page that holds something else than
 * when it was last looked at must be among them. `slack`: a page may instead be among those taken next, where a KVM
 * sets the bit after the write and the reader came in between.
 */
export class DirtyLedger {
  /** Pages that changed and weren't reported. */
  lost = 0;
  /** Pages that were reported. */
  reported = 0;
  /** The first word of each page. */
  readonly #words: readonly DataView[];
  readonly #slack: boolean;
  readonly #late = new Set<number>();
  #known: Uint32Array;

  constructor(memory: HostMemory, slack: boolean) {
    this.#words = Array.from({ length: memory.size / pageBytes }, (_, page) => {
      const bytes = memory.bytes(page * pageBytes, 4);
      return new DataView(bytes.buffer, bytes.byteOffset, 4);
    });
    this.#slack = slack;
    this.#known = this.#read();
  }

  /** Pages that changed since they were last reported, or may have. */
  get changed(): number {
    return this.#read().reduce((count, word, page) => count + (word === this.#known[page] ? 0 : 1), 0);
  }

  #read(): Uint32Array {
    return Uint32Array.from(this.#words, (word) => word.getUint32(0, true));
  }

  /** Takes pages, and counts those that were to be among them and aren't. */
  check(take: () => number[]): void {
    const before = this.#read();
    const taken = new Set(take().map((offset) => offset / pageBytes));
    const after = this.#read();
    for (const [page, word] of before.entries()) {
      if (taken.has(page)) {
        this.reported++;
        this.#late.delete(page);
        this.#known[page] = after[page]!;
      } else if (this.#late.delete(page) || (word !== this.#known[page] && !this.#slack)) {
        this.lost++;
        this.#known[page] = word;
      } else if (word !== this.#known[page]) {
        this.#late.add(page);
      }
    }
  }

  /** Takes all pages as they are: nothing was logged for a while. */
  forget(): void {
    this.#known = this.#read();
    this.#late.clear();
  }
}

/** Waits until `condition` holds. */
export async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 20_000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('it did not come to pass within 20 s');
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
