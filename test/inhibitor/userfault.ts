import { closeSync, openSync, readSync } from 'node:fs';
import type { TestContext } from 'vitest';
import { errnoName } from '../../ts/core/core.js';
import { loadNativeLibrary, type NativeLibrary } from '../../ts/core/native.js';
import type { HostMemory } from '../../ts/kvm/backend.js';
import type { CommitCanceller } from '../../ts/kvm/inhibitor.js';

export const pageBytes = 0x1000;
const device = '/dev/userfaultfd';
/** O_CLOEXEC and O_NONBLOCK. Not user-mode-only: KVM takes a guest's faults in the kernel. */
const openFlags = 0o2004000;
/** Of linux/userfaultfd.h. */
const requests = { create: 0xaa00, api: 0xc018aa3f, register: 0xc020aa00, copy: 0xc028aa03 } as const;
const apiVersion = 0xaan;
/** UFFD_FEATURE_MISSING_SHMEM: guest memory is a shared mapping. */
const missingShared = 1n << 5n;
/** UFFDIO_REGISTER_MODE_MISSING. */
const missing = 1n;
/** `struct uffd_msg`. */
const message = { bytes: 32, event: 0, address: 16, pageFault: 0x12 } as const;

/** A userfaultfd: whoever touches a missing page of the registered memory sleeps until somebody brings the page. */
export class Userfault {
  readonly fd: number;
  readonly #native: NativeLibrary;
  readonly #ioctl: (fd: number, request: number, argument: number) => number;
  /** What the kernel is shown: kept, so that it stays where it is. */
  readonly #argument = new BigUint64Array(5);
  readonly #page = new Uint32Array(pageBytes / 4);
  #closed = false;

  /** The one whose descriptor is `fd`, which may have been opened on another thread. */
  constructor(fd: number) {
    this.fd = fd;
    this.#native = loadNativeLibrary();
    this.#ioctl = this.#native.function('int32_t memslots_ioctl(int32_t, uint32_t, uintptr_t)');
  }

  /** A new one. Skips the test, saying why, where there is none to be had. */
  static open(context: TestContext): Userfault {
    let opened: number;
    try {
      opened = openSync(device, 'r+');
    } catch (error) {
      context.skip(`${device} can't be opened: ${(error as Error).message}`);
    }
    const fd = new Userfault(opened).#ioctl(opened, requests.create, openFlags);
    closeSync(opened);
    if (fd < 0) context.skip(`${device} makes no userfaultfd: ${errnoName(fd)}`);
    const userfault = new Userfault(fd);
    if (userfault.#call(requests.api, [apiVersion, missingShared, 0n]) < 0) {
      userfault.close();
      context.skip('this kernel has no userfaultfd for shared memory');
    }
    return userfault;
  }

  /** From now on faults in `length` bytes of `memory` at `offset` wait, where no page is yet. Whole pages. */
  register(memory: HostMemory, offset: number, length: number): void {
    const start = BigInt(memory.hostAddress + offset);
    this.#must('UFFDIO_REGISTER', this.#call(requests.register, [start, BigInt(length), missing, 0n]));
  }

  /** The address of the next fault that nobody was told of, if there is one. */
  take(): number | undefined {
    const bytes = new DataView(new ArrayBuffer(message.bytes));
    try {
      readSync(this.fd, bytes);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return undefined;
      throw error;
    }
    const event = bytes.getUint8(message.event);
    if (event !== message.pageFault)
      throw new Error(`the userfaultfd told of event ${event}, which isn't a page fault`);
    return Number(bytes.getBigUint64(message.address, true));
  }

  /** Brings the page that holds `address`, with `word` (32 bits) all over it, and wakes who waits for it. */
  bring(address: number, word: number): void {
    const to = BigInt(address - (address % pageBytes));
    const from = BigInt(this.#native.koffi.address(this.#page.fill(word)));
    this.#must('UFFDIO_COPY', this.#call(requests.copy, [to, from, BigInt(pageBytes), 0n, 0n]));
  }

  /** Whoever waits goes on: what is still missing is zeros from now on. Again is harmless. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.fd);
  }

  #call(request: number, argument: readonly bigint[]): number {
    this.#argument.set(argument);
    return this.#ioctl(this.fd, request, Number(this.#native.koffi.address(this.#argument)));
  }

  #must(what: string, result: number): void {
    if (result < 0) throw new Error(`${what} failed with ${errnoName(result)}`);
  }
}

/** When a handler on a thread of its own brings the page. */
export type Cue =
  /** Once it is told to. */
  | 'told'
  /** While the owner waits for a vCPU to come out. */
  | 'waiting'
  /** While the owner's thread is in a system call that nothing interrupts. */
  | 'in a call';

/** Words by which the owner and a handler on a thread of its own talk. */
export const handlerWords = {
  /** 1 once the handler has been told of a fault. */
  taken: 0,
  /** Set by the owner. 1: the page may come. 2: the handler is to end. */
  told: 1,
  /** 1 from just before the page is there. */
  brought: 2,
  /** 1 if it was as the cue says until the page came. */
  onCue: 3,
} as const;

/** What userfault-handler.ts is given. */
export interface HandlerData {
  readonly module: string;
  readonly fd: number;
  /** What the page is full of. */
  readonly word: number;
  readonly cue: Cue;
  readonly words: Int32Array;
  /** The owner's thread, and how to see that it waits. */
  readonly owner: number;
  readonly canceller: CommitCanceller;
}
