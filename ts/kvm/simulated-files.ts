import { errno } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';

/** Slots bound to one guest_memfd, as byte ranges of it. */
export interface Binding {
  readonly start: number;
  readonly end: number;
}

/** An open file, as far as KVM_SET_USER_MEMORY_REGION2 looks at one. */
interface File {
  /** The machine whose guest_memfd it is; undefined for any other kind of file. */
  readonly machine: object | undefined;
  readonly size: number;
  readonly bindings: Set<Binding>;
}

/**
 * Simulated file descriptors: guest_memfds, and other files to be refused. Simulated machines that share a table stand
 * for machines of one process.
 */
export class FileTable {
  readonly #files = new Map<number, File>();

  /** A new guest_memfd of `machine`, `size` bytes long: its descriptor. */
  createGuestMemfd(machine: object, size: number): number {
    return this.#install({ machine, size, bindings: new Set() });
  }

  /** A file that is no guest_memfd: its descriptor. */
  createOther(): number {
    return this.#install({ machine: undefined, size: 0, bindings: new Set() });
  }

  /** Another descriptor of the same file, as dup() gives. Throws `INVALID` for a descriptor that isn't open. */
  duplicate(fd: number): number {
    const file = this.#files.get(fd);
    if (file === undefined) throw new MemorySlotsError('INVALID', `file descriptor ${fd} is not open`);
    return this.#install(file);
  }

  /** Slots bound to the file keep their binding. False for a descriptor that isn't open. */
  close(fd: number): boolean {
    return this.#files.delete(fd);
  }

  /**
   * Binds `size` bytes from `offset` of guest_memfd `fd` to a slot of `machine`. What {@link unbind} takes, or a
   * negative errno.
   */
  bind(fd: number, machine: object, offset: number, size: number): { file: File; binding: Binding } | number {
    const file = this.#files.get(fd);
    if (file === undefined) return -errno.EBADF;
    const binding = { start: offset, end: offset + size };
    if (file.machine !== machine || binding.end > file.size) return -errno.EINVAL;
    for (const other of file.bindings) {
      if (other.start < binding.end && binding.start < other.end) return -errno.EINVAL;
    }
    file.bindings.add(binding);
    return { file, binding };
  }

  #install(file: File): number {
    // The lowest free descriptor above the standard streams, as the kernel gives.
    let fd = 3;
    while (this.#files.has(fd)) fd++;
    this.#files.set(fd, file);
    return fd;
  }
}

/** A slot's hold on a range of a guest_memfd. */
export type BoundRange = Exclude<ReturnType<FileTable['bind']>, number>;

export function unbind({ file, binding }: BoundRange): void {
  file.bindings.delete(binding);
}
