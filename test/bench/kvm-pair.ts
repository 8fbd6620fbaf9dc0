import type { Arena, MemoryRange } from '../../ts/core/arena.js';
import { createArena } from '../../ts/core/node.js';
import type { HostMemory } from '../../ts/kvm/backend.js';
import { LinuxBackend } from '../../ts/kvm/linux.js';
import { Machine, type MachineOptions } from '../../ts/kvm/machine.js';
import type { Operation } from '../../ts/kvm/planner.js';
import type { Vcpu } from '../../ts/kvm/vcpu-owner.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { loadRivals, type Rivals } from './rivals.js';

/** Where the guests' code lies, which nothing else uses. */
export const codeAddress = 0x1000000;
const vmBytes = 128;
const regionBytes = 32;
const gateWord = 40;
/** Calls that a rival's lists may hold together. */
const mostCalls = 200_000;
/** How long a vCPU may take to get going, in milliseconds. */
const patience = 5_000;

/** Why KVM can't be measured here, or undefined. */
export async function kvmMissing(): Promise<string | undefined> {
  try {
    const machine = await Machine.create({ backend: 'kvm' });
    await machine.close();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** Where in its page of code the guest that touches pages has its mailbox. */
const mailboxOffset = 0x800;

/** What both guests run: 32-bit code for flat segments. */
export const guests = {
  /** Spins. */
  spin: [0xeb, 0xfe],
  /** Writes to a port for ever: each is an exit. */
  port: [0xe6, 0x80, 0xeb, 0xfc],
  /** Touches pages as its mailbox says; see rivals.h. The jumps' distances are worked out by hand. */
  touch: (address: number): number[] => [
    ...[0xbb, ...word(address + mailboxOffset)], //      0       mov ebx, mailbox
    ...[0xf3, 0x90], //                                  5 wait: pause
    ...[0x8b, 0x03], //                                  7       mov eax, [ebx]        ; sequence
    ...[0x3b, 0x43, 0x04], //                            9       cmp eax, [ebx + 4]    ; done
    ...[0x74, 0xf7], //                                 12       je wait (5)
    ...[0x8b, 0x7b, 0x08], //                           14 walk: mov edi, [ebx + 8]    ; start
    ...[0x8b, 0x4b, 0x0c], //                           17       mov ecx, [ebx + 12]   ; pages
    ...[0x8b, 0x53, 0x10], //                           20       mov edx, [ebx + 16]   ; write
    ...[0x85, 0xc9], //                                 23 next: test ecx, ecx
    ...[0x74, 0x13], //                                 25       jz walked (46)
    ...[0x85, 0xd2], //                                 27       test edx, edx
    ...[0x74, 0x04], //                                 29       jz read (35)
    ...[0x89, 0x07], //                                 31       mov [edi], eax
    ...[0xeb, 0x02], //                                 33       jmp step (37)
    ...[0x8b, 0x37], //                                 35 read: mov esi, [edi]
    ...[0x81, 0xc7, 0x00, 0x10, 0x00, 0x00], //         37 step: add edi, 4096
    ...[0x49], //                                       43       dec ecx
    ...[0xeb, 0xe9], //                                 44       jmp next (23)
    ...[0x83, 0x7b, 0x14, 0x00], //                     46 walked: cmp dword [ebx + 20], 0 ; repeat
    ...[0x75, 0xda], //                                 50       jne walk (14)
    ...[0x89, 0x43, 0x04], //                           52       mov [ebx + 4], eax
    ...[0xeb, 0xcc], //                                 55       jmp wait (5)
  ],
} as const;

function word(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}

/** Says how long KVM took. */
class TimedBackend extends LinuxBackend {
  callTime = 0;

  override apply(operations: number, count: number): number {
    const start = process.hrtime.bigint();
    const done = super.apply(operations, count);
    this.callTime = Number(process.hrtime.bigint() - start);
    return done;
  }
}

/** The same virtual machine twice: one of this library's, and one in C alone, with the same guest and host memory. */
export class KvmPair {
  readonly machine: Machine;
  readonly rivals: Rivals;
  readonly #backend: TimedBackend;
  readonly #arena: Arena;
  readonly #vm: number;
  readonly #lists: number;
  readonly #code: HostMemory;
  #calls: Operation[] | undefined;
  #mirrored: readonly RivalSlot[] = [];
  #vcpu: Vcpu | undefined;
  #entries = 0;
  #listed = 0;

  private constructor(machine: Machine, backend: TimedBackend, rivals: Rivals) {
    this.machine = machine;
    this.#backend = backend;
    this.rivals = rivals;
    this.#arena = createArena(mostCalls * regionBytes * 2);
    this.#vm = this.#arena.allocate(vmBytes);
    this.#lists = this.#arena.allocate(mostCalls * regionBytes);
    this.#code = machine.allocate(0x1000);
    const result = rivals.vmOpen(rivals.address(this.#arena, this.#vm));
    if (result < 0) throw new Error(`the rival's VM: ${result}`);
    machine.transaction(() => {
      const region = MemoryRegion.ram(machine.map, 'code', 0x1000, { memory: this.#code });
      machine.system.add(region, codeAddress);
    });
    this.mirror();
  }

  static async create(options: MachineOptions): Promise<KvmPair> {
    let pair: KvmPair | undefined;
    let backend: TimedBackend | undefined;
    const machine = await Machine.create({
      backend: (arena) => {
        backend = new TimedBackend(arena);
        return backend;
      },
      splitPoints: [],
      ...options,
      onCommit: (record) => {
        // Reading them takes time, which a measured commit mustn't.
        if (pair !== undefined) pair.#calls?.push(...record.calls());
      },
    });
    try {
      pair = new KvmPair(machine, backend!, loadRivals());
      return pair;
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  /** Nanoseconds that the calls of the machine's last commit took. */
  get callTime(): number {
    return this.#backend.callTime;
  }

  /** Gives the rival the very slots that the machine has. Both vCPUs must be out. */
  mirror(): void {
    const calls = (kind: string) => this.#mirrored.map((slot) => ({ kind, slot }));
    this.set(this.#list(calls('delete')));
    this.#mirrored = this.machine
      .slots()
      .map(({ id, gpa, size, flags, memory, offset }) => ({ id, gpa, size, flags, host: memory.hostAddress + offset }));
    this.set(this.#list(calls('create')));
    this.#listed = 0;
  }

  /** The calls of KVM that the library makes for `commit`, as a list for {@link set}; good until {@link mirror}. */
  take(commit: () => void): CallList {
    const calls: Operation[] = [];
    this.#calls = calls;
    commit();
    this.#calls = undefined;
    return this.#list(calls);
  }

  #list(calls: readonly { kind: string; slot: RivalSlot }[]): CallList {
    const at = this.#lists + this.#listed * regionBytes;
    this.#listed += calls.length;
    if (this.#listed > mostCalls) throw new Error('too many calls are listed');
    for (const [index, { kind, slot }] of calls.entries()) {
      const region = at + index * regionBytes;
      this.#arena.setU32(region, slot.id);
      this.#arena.setU32(region + 4, slot.flags & 7);
      this.#arena.setU64(region + 8, slot.gpa);
      this.#arena.setU64(region + 16, kind === 'delete' ? 0 : slot.size);
      this.#arena.setU64(region + 24, slot.host);
    }
    return { address: this.rivals.address(this.#arena, at), count: calls.length };
  }

  get #vmAddress(): number {
    return this.rivals.address(this.#arena, this.#vm);
  }

  /** The rival's loop of calls. */
  set({ address, count }: CallList): void {
    const result = this.rivals.vmSet(this.#vmAddress, address, count);
    if (result < 0) throw new Error(`the rival's calls failed: ${result}`);
  }

  /** The same while its vCPU is kept out. */
  setInWindow({ address, count }: CallList): void {
    const result = this.rivals.vmSetInWindow(this.#vmAddress, address, count);
    if (result < 0) throw new Error(`the rival's calls failed: ${result}`);
  }

  /** Starts a vCPU in each, paused. */
  async start(code: readonly number[]): Promise<void> {
    this.#code.bytes(0, code.length).set(code);
    this.#vcpu = await this.machine.addVcpu({ start: { mode: 'protected', entry: codeAddress } });
    const result = this.rivals.vmStart(this.#vmAddress, codeAddress);
    if (result < 0) throw new Error(`the rival's vCPU: ${result}`);
  }

  /** Lets one side's vCPU run and the other's not. */
  run(side: 'ours' | 'rival'): void {
    if (side === 'ours') {
      this.rivals.vmPause(this.#vmAddress);
      this.#entries = this.#vcpu!.counters.entries;
      this.#vcpu!.resume();
    } else {
      this.#vcpu!.pause();
      this.rivals.vmResume(this.#vmAddress);
    }
  }

  /** Has the guest that runs touch `pages` pages from `start` on, once or until {@link end}. */
  begin(start: number, pages: number, write: boolean, repeat: boolean): void {
    this.rivals.begin(this.#code.hostAddress + mailboxOffset, start, pages, Number(write), Number(repeat));
  }

  /** Waits until it has. */
  end(): void {
    if (this.rivals.end(this.#code.hostAddress + mailboxOffset) < 0) throw new Error("the guest doesn't answer");
  }

  pauseBoth(): void {
    this.#vcpu?.pause();
    this.rivals.vmPause(this.#vmAddress);
  }

  /** Waits until that side's vCPU is in KVM_RUN, having been kept out before. */
  awaitInside(side: 'ours' | 'rival'): void {
    const deadline = performance.now() + patience;
    for (;;) {
      const entries = this.#vcpu!.counters.entries;
      const inside =
        side === 'ours'
          ? entries !== this.#entries
          : (Atomics.load(this.#arena.words, (this.#vm + gateWord) >>> 2) & 0xffff) > 0;
      if (inside) {
        this.#entries = entries;
        break;
      }
      if (performance.now() > deadline) throw new Error(`the vCPU of ${side} didn't get going`);
    }
    // From the gate into the guest.
    const settled = performance.now() + 0.05;
    while (performance.now() < settled);
  }

  /** Nanoseconds of `count` round trips of KVM_RUN, each until the guest writes to a port. No vCPU may have been started. */
  prepareRoundTrips(): (count: number) => void {
    this.#code.bytes(0, guests.port.length).set(guests.port);
    const result = this.rivals.vmPrepare(this.#vmAddress, codeAddress);
    if (result < 0) throw new Error(`the rival's vCPU: ${result}`);
    return (count) => {
      const failed = this.rivals.vmRoundTrips(this.#vmAddress, count);
      if (failed < 0) throw new Error(`KVM_RUN: ${failed}`);
    };
  }

  async close(): Promise<void> {
    this.rivals.vmClose(this.#vmAddress);
    await this.machine.close();
  }
}

type RivalSlot = Pick<MemoryRange, 'gpa' | 'size' | 'host' | 'id' | 'flags'>;

/** Calls of KVM in native memory. */
export interface CallList {
  readonly address: number;
  readonly count: number;
}
