/** One process of the log: its thread group's first thread, and which VM stands behind its file descriptors. */
interface Process {
  readonly leader: number;
  readonly vms: Map<number, string>;
}

/**
 * Tells VMs apart by file descriptor and process. strace names threads, not processes, so that a thread's process is
 * known only where the log has the `clone` that made it. For others, descriptors decide: of the processes that have a
 * VM behind the number, the one whose first thread came last before this thread.
 */
export class StraceVms {
  readonly #processes = new Map<number, Process>();
  readonly #leaders = new Map<number, number>();
  readonly #named = new Map<number, number>();

  /** `KVM_CREATE_VM` gave `thread` the descriptor. */
  created(thread: number, descriptor: number): void {
    this.#processOf(thread).vms.set(descriptor, this.#name(descriptor));
  }

  closed(thread: number, descriptor: number): void {
    this.#find(thread, descriptor)?.vms.delete(descriptor);
  }

  /** `parent` made a thread of its own process, or a process with a copy of its descriptors. */
  cloned(parent: number, child: number, sameProcess: boolean): void {
    const process = this.#processOf(parent);
    if (sameProcess) this.#leaders.set(child, process.leader);
    else {
      this.#leaders.delete(child);
      this.#processes.set(child, { leader: child, vms: new Map(process.vms) });
    }
  }

  exited(thread: number): void {
    this.#leaders.delete(thread);
    this.#processes.delete(thread);
  }

  /** The VM behind a descriptor; a new one if the log hasn't shown its creation. */
  vm(thread: number, descriptor: number): string {
    const process = this.#find(thread, descriptor) ?? this.#processOf(thread);
    let vm = process.vms.get(descriptor);
    if (vm === undefined) {
      vm = this.#name(descriptor);
      process.vms.set(descriptor, vm);
    }
    return vm;
  }

  #processOf(thread: number): Process {
    const leader = this.#leaders.get(thread) ?? thread;
    let process = this.#processes.get(leader);
    if (process === undefined) {
      process = { leader, vms: new Map() };
      this.#processes.set(leader, process);
    }
    return process;
  }

  #find(thread: number, descriptor: number): Process | undefined {
    const own = this.#processes.get(this.#leaders.get(thread) ?? thread);
    if (own?.vms.has(descriptor)) return own;
    const having = [...this.#processes.values()].filter(({ vms }) => vms.has(descriptor));
    const earlier = having.filter(({ leader }) => leader <= thread);
    return (earlier.length > 0 ? earlier : having).sort((a, b) => b.leader - a.leader)[0];
  }

  #name(descriptor: number): string {
    const count = (this.#named.get(descriptor) ?? 0) + 1;
    this.#named.set(descriptor, count);
    return count === 1 ? `fd ${descriptor}` : `fd ${descriptor} (${count})`;
  }
}
