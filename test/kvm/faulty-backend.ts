import type { Arena } from '../../ts/core/arena.js';
import type { AllocateOptions, Backend, GuestProgram } from '../../ts/kvm/backend.js';

/** A backend of which a chosen call fails, at the boundary of the call: KVM itself isn't asked. */
export class FaultyBackend implements Backend {
  readonly kind;
  readonly capabilities;
  readonly inner: Backend;
  /** Calls of KVM_SET_USER_MEMORY_REGION that KVM made, or refused. */
  calls = 0;
  readonly #arena: Arena;
  #faults: { after: number; errno: number }[] = [];

  constructor(arena: Arena, inner: Backend) {
    this.#arena = arena;
    this.inner = inner;
    this.kind = inner.kind;
    this.capabilities = inner.capabilities;
  }

  /** Makes the call fail that comes after `after` more, and so on for further pairs, counted from each other. */
  failAfter(...faults: { after: number; errno: number }[]): void {
    this.#faults = faults;
  }

  get armed(): boolean {
    return this.#faults.length > 0;
  }

  apply(operations: number, count: number): number {
    const [fault] = this.#faults;
    const possible = fault === undefined ? count : Math.min(fault.after, count);
    const done = this.inner.apply(operations, possible);
    this.calls += done;
    if (fault === undefined || done < possible) return done;
    fault.after -= done;
    if (done === count) return done;
    this.#faults.shift();
    const { operation } = this.#arena.layout;
    this.#arena.words[(operations + done * operation.bytes + operation.result) >>> 2] = -fault.errno;
    return done;
  }

  getDirtyLog(addressSpace: number, id: number, pages: number, bitmap: Uint8Array): number {
    return this.inner.getDirtyLog(addressSpace, id, pages, bitmap);
  }

  allocate(bytes: number, options?: AllocateOptions) {
    return this.inner.allocate(bytes, options);
  }

  createVcpu(index: number, line: number, guest: GuestProgram) {
    return this.inner.createVcpu(index, line, guest);
  }

  kick(index: number): void {
    this.inner.kick(index);
  }

  destroyVcpu(index: number): void {
    this.inner.destroyVcpu(index);
  }

  close(): void {
    this.inner.close();
  }
}
