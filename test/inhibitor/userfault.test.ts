import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { describe, expect, it, type TestContext } from 'vitest';
import type { GuestProgram, HostMemory } from '../../ts/kvm/backend.js';
import { gateBits } from '../../ts/kvm/gate.js';
import type { Machine } from '../../ts/kvm/machine.js';
import type { CommitRecord } from '../../ts/kvm/slots-listener.js';
import { currentThread, describeThread } from '../../ts/kvm/thread-state.js';
import type { Vcpu } from '../../ts/kvm/vcpu-owner.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { needsKvm, withMachine } from '../kvm/backends.js';
import { type GuestKind, little, place } from '../kvm/dirty-guest.js';
import { errorOf, growingRam, mebibyte, ramAddress, until } from './helpers.js';
import { type Cue, type HandlerData, handlerWords, pageBytes, Userfault } from './userfault.js';

/** What the missing page is full of once it comes. */
const word = 0x5eed1234;
/** What a guest that waits for it has done. */
const stuck = { rounds: 1, read: 0 };

/**
 * A guest that counts at the start of RAM, reads the page after it, stores what it read beside its count, and so on. A
 * protected one reads it by a string instruction first, which KVM emulates on every processor.
 */
function readingGuest(machine: Machine, kind: GuestKind): GuestProgram {
  const code = [
    ...[0xbb, ...little(ramAddress)], //             0 mov ebx, RAM
    ...[0x31, 0xc9], //                              5 xor ecx, ecx
    ...[0xff, 0xc1], //                              7 next: inc ecx
    ...[0x89, 0x0b], //                              9 mov [ebx], ecx
    ...[0xbe, ...little(ramAddress + pageBytes)], // 11 mov esi, the page after
    ...(kind === 'protected' ? [0x6e] : [0x90]), //  16 outsb, or nop
    ...[0xbe, ...little(ramAddress + pageBytes)], // 17 mov esi, the page after
    ...[0x8b, 0x06], //                              22 mov eax, [esi]
    ...[0x89, 0x43, 0x04], //                        24 mov [ebx + 4], eax
    ...[0xeb, 0xea], //                              27 jmp next (29 - 22 = 7)
  ];
  return { start: place(machine, 1, kind, code)! };
}

/** Who takes faults and brings the page. */
interface FaultHandler {
  /** Whether it was told of the guest's fault. */
  hasTaken(): boolean;
  /** The page may come. */
  bring(): void;
  end(): Promise<void>;
}

/** Handles faults on the thread that owns the machine, which stands still in a commit. */
class OwnHandler implements FaultHandler {
  readonly #userfault: Userfault;
  #address: number | undefined;

  constructor(userfault: Userfault) {
    this.#userfault = userfault;
  }

  hasTaken(): boolean {
    this.#address ??= this.#userfault.take();
    return this.#address !== undefined;
  }

  bring(): void {
    this.#userfault.bring(this.#address!, word);
  }

  async end(): Promise<void> {}
}

/** Handles faults on a thread of its own. */
class ThreadHandler implements FaultHandler {
  readonly #words = new Int32Array(new SharedArrayBuffer(16));
  readonly #ended: Promise<unknown>;

  constructor(userfault: Userfault, machine: Machine, cue: Cue) {
    const workerData: HandlerData = {
      module: new URL('userfault-handler.ts', import.meta.url).href,
      fd: userfault.fd,
      word,
      cue,
      words: this.#words,
      owner: currentThread(),
      canceller: machine.canceller,
    };
    this.#ended = once(new Worker(new URL('../thread.mjs', import.meta.url), { workerData, execArgv: [] }), 'exit');
  }

  hasTaken(): boolean {
    return this.#is('taken');
  }

  /** Whether the page is there, or just coming. */
  hasBrought(): boolean {
    return this.#is('brought');
  }

  wasOnCue(): boolean {
    return this.#is('onCue');
  }

  bring(): void {
    Atomics.store(this.#words, handlerWords.told, 1);
  }

  async end(): Promise<void> {
    Atomics.store(this.#words, handlerWords.told, 2);
    await this.#ended;
  }

  #is(name: keyof typeof handlerWords): boolean {
    return Atomics.load(this.#words, handlerWords[name]) === 1;
  }
}

interface Parts<Handler> {
  readonly machine: Machine;
  readonly ram: MemoryRegion;
  readonly vcpu: Vcpu;
  readonly handler: Handler;
  readonly commits: readonly CommitRecord[];
  /** How often the guest went round, and what it read last. */
  readonly guest: () => { rounds: number; read: number };
}

/** A machine with a vCPU that waits for a page of its RAM, and RAM whose growth needs a window. */
async function withStuckVcpu<Handler extends FaultHandler>(
  context: TestContext,
  kind: GuestKind,
  timeout: number,
  handle: (userfault: Userfault, machine: Machine) => Handler,
  body: (parts: Parts<Handler>) => Promise<void> | void,
): Promise<void> {
  needsKvm(context, 'kvm');
  const userfault = Userfault.open(context);
  const commits: CommitRecord[] = [];
  const options = {
    backend: 'kvm' as const,
    policy: 'exact' as const,
    inhibitor: { timeout },
    onCommit: (record: CommitRecord) => commits.push(record),
  };
  const onMachine = async (machine: Machine) => {
    const ram = growingRam(machine);
    const memory = ram.memory as HostMemory;
    userfault.register(memory, pageBytes, pageBytes);
    const vcpu = await machine.addVcpu(readingGuest(machine, kind));
    const counters = memory.bytes(0, 8);
    const view = new DataView(counters.buffer, counters.byteOffset, counters.byteLength);
    const guest = () => ({ rounds: view.getUint32(0, true), read: view.getUint32(4, true) });
    const handler = handle(userfault, machine);
    try {
      vcpu.resume();
      await until(() => handler.hasTaken());
      // It is stuck, and where it is to be.
      expect(guest()).toEqual(stuck);
      expect(describeThread(vcpu.thread)).toMatch(/waiting in handle_userfault/);
      await body({ machine, ram, vcpu, handler, commits, guest });
      // Whatever happened meanwhile, it goes on with what was brought.
      await until(() => guest().rounds > 3);
      expect(guest().read).toBe(word);
      expect(vcpu.counters).toMatchObject({ mmioExits: 0, spuriousExits: 0, internalErrors: 0 });
    } finally {
      await handler.end();
      // Before the machine, which waits for its vCPUs.
      userfault.close();
    }
  };
  try {
    await withMachine(options, onMachine);
  } finally {
    userfault.close();
  }
}

/** Milliseconds that no wait in these tests takes, and those of a wait that is to be too short. */
const long = 20_000;
const short = 300;

const onItsOwn = (cue: Cue) => (userfault: Userfault, machine: Machine) => new ThreadHandler(userfault, machine, cue);
const onTheOwner = (userfault: Userfault) => new OwnHandler(userfault);

describe('a vCPU that runs natively and waits for a page', () => {
  const kind = 'user';

  it.for([
    ['another thread, which takes its time', onItsOwn('told')],
    ["the owner's thread, which stands still in the commit", onTheOwner],
  ] as const)('is kicked out of its wait, though the page is to come from %s', async ([, handle], context) => {
    await withStuckVcpu<FaultHandler>(
      context,
      kind,
      long,
      handle,
      async ({ machine, ram, vcpu, handler, commits, guest }) => {
        const { entries } = vcpu.counters;
        ram.setSize(2 * mebibyte);
        expect(commits.at(-1)).toMatchObject({ inhibit: true, operations: 2 });
        expect(machine.slots().map(({ size }) => size)).toContain(2 * mebibyte);
        // It came out, went in again, and waits again: nobody has brought the page.
        await until(() => vcpu.counters.entries > entries);
        expect(guest()).toEqual(stuck);
        handler.bring();
      },
    );
  });
});

describe('a vCPU whose access KVM emulates and that waits for a page', () => {
  const kind = 'protected';

  it('is waited for until another thread brings the page', async (context) => {
    await withStuckVcpu(context, kind, long, onItsOwn('waiting'), ({ machine, ram, handler, commits }) => {
      ram.setSize(2 * mebibyte);
      // The page came after the commit had begun to wait, and the commit went on after the page had come.
      expect([handler.hasBrought(), handler.wasOnCue()]).toEqual([true, true]);
      expect(commits.at(-1)).toMatchObject({ inhibit: true, operations: 2 });
      expect(machine.slots().map(({ size }) => size)).toContain(2 * mebibyte);
    });
  });

  it("makes the commit time out where the page is to come from the owner's thread, and all is as before", async (context) => {
    await withStuckVcpu(context, kind, short, onTheOwner, async ({ machine, ram, vcpu, handler, commits, guest }) => {
      const [slots, view, committed] = [machine.slots(), machine.memory.view, commits.length];
      const error = errorOf(() => ram.setSize(2 * mebibyte));
      expect(error.code).toBe('TIMEOUT');
      expect(error.message).toMatch(
        /^vCPU 0 \(thread \d+, state \w \([\w ]+\), (perhaps )?waiting in handle_userfault.*\) didn't come out within 300 ms; the gates are open again and nothing was changed$/,
      );
      expect(error.message).toContain(`thread ${vcpu.thread},`);
      expect(guest()).toEqual(stuck);
      expect([machine.slots(), ram.size, machine.memory.view, commits.length]).toEqual([
        slots,
        mebibyte,
        view,
        committed,
      ]);
      const { arena, line } = machine.ioctlGate();
      expect(new Int32Array(arena.memory.buffer)[line >>> 2]! & gateBits.shut).toBe(0);
      handler.bring();
      await until(() => guest().rounds > 3);
      ram.setSize(2 * mebibyte);
      expect(machine.slots()).not.toEqual(slots);
    });
  });
});

describe.each(['user', 'protected'] as const)(
  'a commit that needs no window while a vCPU (%s) waits for a page',
  (kind) => {
    it('waits inside KVM, without a deadline, until another thread brings the page', async (context) => {
      await withStuckVcpu(context, kind, short, onItsOwn('in a call'), ({ machine, handler, commits }) => {
        const memory = machine.allocate(mebibyte);
        machine.system.add(MemoryRegion.ram(machine.map, 'more', mebibyte, { memory }), 2 * ramAddress);
        expect(commits.at(-1)).toMatchObject({ inhibit: false, operations: 1 });
        expect([handler.hasBrought(), handler.wasOnCue()]).toEqual([true, true]);
      });
    });
  },
);
