import { hex } from '../../ts/core/checks.js';
import { errnoName } from '../../ts/core/core.js';
import type { SimulatedKernel } from '../../ts/kvm/simulated-kernel.js';

/** What a simulated and a real kernel have in common. */
export type Kernel = Pick<
  SimulatedKernel,
  | 'setUserMemoryRegion'
  | 'setUserMemoryRegion2'
  | 'getDirtyLog'
  | 'clearDirtyLog'
  | 'enableManualDirtyLog'
  | 'createGuestMemfd'
>;

/** A file that a call names: the n-th guest_memfd made, or one that is to be refused. */
export type FileName = number | 'closed' | 'ordinary' | "another machine's";

/** One call, the same for both kernels. */
export type Call =
  | {
      readonly kind: 'set';
      readonly version: 1 | 2;
      /** False: the argument lies at an address that isn't mapped. */
      readonly readable: boolean;
      readonly slot: number;
      readonly flags: number;
      readonly gpa: bigint;
      readonly size: bigint;
      readonly host: bigint;
      readonly file: FileName;
      readonly offset: bigint;
    }
  | { readonly kind: 'get dirty log'; readonly slot: number; readonly writable: boolean }
  | {
      readonly kind: 'clear dirty log';
      readonly slot: number;
      readonly firstPage: bigint;
      readonly pages: number;
      /** Each byte of the bitmap. */
      readonly pattern: number;
      readonly readable: boolean;
    }
  | { readonly kind: 'enable manual dirty log'; readonly value: number }
  | { readonly kind: 'create guest_memfd'; readonly size: bigint }
  | { readonly kind: 'duplicate'; readonly file: number }
  | { readonly kind: 'close'; readonly file: number };

/** A kernel with one machine, and the files that calls name. */
export interface Subject {
  readonly name: string;
  readonly kernel: Kernel;
  /** Descriptors of files that are no guest_memfd. */
  readonly ordinaryFiles: readonly [number, ...number[]];
  readonly foreignGuestMemfd: number;
  duplicate(fd: number): number;
  closeFile(fd: number): void;
  close(): void;
}

/** The bytes of the largest bitmap that either kernel may be asked for: a slot of 16 GiB. */
const largestBitmap = 2 ** 19;

/** Makes calls on one subject. */
export class Player {
  readonly subject: Subject;
  /** Descriptors of the guest_memfds made, −1 once closed. */
  readonly #files: number[] = [];
  /** Bytes of the bitmap of the largest slot made so far: what a dirty log can fill. */
  #bitmapBytes = 8;
  readonly #bitmap = new Uint8Array(largestBitmap);

  constructor(subject: Subject) {
    this.subject = subject;
  }

  /** The result: 0 or more, or a negative errno. What a dirty log gave is in {@link bitmap} afterwards. */
  play(call: Call): number {
    const { kernel } = this.subject;
    switch (call.kind) {
      case 'set':
        return this.#set(call);
      case 'get dirty log':
        this.#bitmap.fill(0, 0, this.#bitmapBytes);
        return kernel.getDirtyLog(call.slot, call.writable ? this.#bitmap : null);
      case 'clear dirty log': {
        const bytes = Math.min(Math.ceil(call.pages / 64) * 8, largestBitmap);
        const pattern = new Uint8Array(bytes).fill(call.pattern);
        return kernel.clearDirtyLog(call.slot, call.firstPage, call.pages, call.readable ? pattern : null);
      }
      case 'enable manual dirty log':
        return kernel.enableManualDirtyLog(call.value);
      case 'create guest_memfd': {
        const fd = kernel.createGuestMemfd(call.size);
        this.#files.push(fd);
        return Math.min(fd, 0);
      }
      case 'duplicate': {
        const fd = this.#files[call.file] ?? -1;
        this.#files.push(fd < 0 ? fd : this.subject.duplicate(fd));
        return 0;
      }
      case 'close': {
        const fd = this.#files[call.file] ?? -1;
        if (fd >= 0) this.subject.closeFile(fd);
        this.#files[call.file] = -1;
        return 0;
      }
    }
  }

  /** What the last dirty log gave. */
  get bitmap(): Uint8Array {
    return this.#bitmap.subarray(0, this.#bitmapBytes);
  }

  close(): void {
    for (const fd of this.#files) if (fd >= 0) this.subject.closeFile(fd);
    this.subject.close();
  }

  #set(call: Call & { kind: 'set' }): number {
    const { kernel } = this.subject;
    const { slot, flags, gpa, size, host, offset } = call;
    const request = call.readable
      ? { slot, flags, gpa, size, host, guestMemfd: this.#descriptor(call.file), guestMemfdOffset: offset }
      : null;
    const result = call.version === 1 ? kernel.setUserMemoryRegion(request) : kernel.setUserMemoryRegion2(request);
    if (result === 0) this.#bitmapBytes = Math.max(this.#bitmapBytes, Math.ceil(Number(size) / 4096 / 64) * 8);
    return result;
  }

  #descriptor(file: FileName): number {
    if (file === 'ordinary') return this.subject.ordinaryFiles[0];
    if (file === "another machine's") return this.subject.foreignGuestMemfd;
    return file === 'closed' ? -1 : (this.#files[file] ?? -1);
  }
}

/** A call as a line to be read. */
export function format(call: Call): string {
  const fields = Object.entries(call).map(([name, value]: [string, unknown]) => {
    if (name === 'kind') return String(value);
    const number = typeof value === 'bigint' || typeof value === 'number';
    return `${name} ${number ? hex(value) : value}`;
  });
  return fields.join(', ');
}

export function formatResult(result: number): string {
  return result < 0 ? errnoName(result) : String(result);
}
