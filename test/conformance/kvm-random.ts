import { randomFrom } from '../../ts/testing/random.js';
import type { Call, FileName } from './kvm-calls.js';

type SetCall = Call & { kind: 'set' };

const page = 4096n;

/** The rules whose edges calls are to be near. */
export interface Edges {
  readonly slots: number;
  readonly physicalAddressBits: number;
  readonly hostLimit: number;
}

/**
 * An endless random sequence of calls, valid and not: ids, addresses and sizes keep colliding, and stay close to the
 * edges of the rules. What was accepted is told back with {@link accepted}, so that changes of live slots are frequent.
 * Creates that can succeed are at most 1 GiB, a few 16 GiB: larger ones take a shadow-paging host seconds.
 */
export class RandomCalls {
  readonly #random: () => number;
  readonly #edges: Edges;
  readonly #live = new Map<number, SetCall>();
  #files = 0;

  constructor(seed: number, edges: Edges) {
    this.#random = randomFrom(seed);
    this.#edges = edges;
  }

  next(): Call {
    const kind = this.#random();
    if (kind < 0.74) return this.#chance(0.55) ? this.#changed() : this.#fresh();
    if (kind < 0.84) return { kind: 'get dirty log', slot: this.#anySlot(), writable: !this.#chance(0.02) };
    if (kind < 0.94) return this.#clear();
    if (kind < 0.955) {
      return { kind: 'enable manual dirty log', value: this.#pick([0, 1, 3, 3, 2, 4, this.#integer(256)]) };
    }
    if (kind < 0.97) {
      // Not too many: a process has a thousand descriptors.
      if (this.#files >= 250) return { kind: 'close', file: this.#integer(this.#files) };
      this.#files++;
      return this.#chance(0.3)
        ? { kind: 'duplicate', file: this.#integer(this.#files) }
        : {
            kind: 'create guest_memfd',
            size: this.#pick([0n, page, 16n * page, 256n * page, 256n * page, 1000n, 1n << 63n]),
          };
    }
    if (kind < 0.993) return this.#private();
    return { kind: 'close', file: this.#integer(Math.max(1, this.#files)) };
  }

  /** Tells that `call` succeeded. */
  accepted(call: Call): void {
    if (call.kind !== 'set') return;
    if (call.size === 0n) this.#live.delete(call.slot);
    else this.#live.set(call.slot, call);
  }

  /** A live slot, with something about it changed, or deleted. */
  #changed(): Call {
    const live = this.#liveCall();
    if (live === undefined) return this.#fresh();
    const call = { ...live, version: this.#version() };
    const change = this.#random();
    if (change < 0.3) return { ...call, size: 0n, flags: this.#chance(0.9) ? 0 : this.#flags() };
    if (change < 0.35) return call;
    if (change < 0.5) return { ...call, flags: call.flags ^ 1 };
    if (change < 0.6) return { ...call, flags: this.#flags() };
    if (change < 0.8) return { ...call, gpa: this.#gpa(), flags: call.flags ^ this.#pick([0, 0, 1]) };
    if (change < 0.85) return { ...call, size: this.#size() };
    if (change < 0.9) return { ...call, host: this.#host() };
    if (change < 0.95) return { ...call, slot: this.#slot() };
    return { ...call, size: 0n, gpa: this.#gpa(), host: this.#host() };
  }

  #fresh(): SetCall {
    return {
      kind: 'set',
      version: this.#version(),
      readable: !this.#chance(0.01),
      slot: this.#slot(),
      flags: this.#flags(),
      gpa: this.#gpa(),
      size: this.#chance(0.15) ? 0n : this.#size(),
      host: this.#host(),
      file: this.#file(),
      offset: this.#pick([0n, 0n, 0n, page, 8n * page, 63n * page, 1n, -page & 0xffff_ffff_ffff_ffffn, 1n << 63n]),
    };
  }

  /** A slot with a guest_memfd that is mostly in order. */
  #private(): Call {
    const host = BigInt(this.#integer(4)) << 20n;
    const offset = BigInt(this.#integer(64)) * page;
    const size = BigInt(1 + this.#integer(16)) * page;
    return { ...this.#fresh(), version: 2, readable: true, flags: 4, file: this.#file(), host, offset, size };
  }

  #clear(): Call {
    const live = this.#liveCall();
    const pages = Number((live?.size ?? page) / page);
    const first = this.#pick([0, 0, 0, 0, 0, 64, 64 * this.#integer(8), this.#integer(100), pages]);
    const left = Math.max(0, pages - first);
    return {
      kind: 'clear dirty log',
      slot: this.#anySlot(live?.slot),
      firstPage: this.#chance(0.02) ? this.#u64() : BigInt(first),
      pages: this.#pick([left, left, left, left, 64, 0, left + 1, this.#integer(200), this.#integer(2 ** 32)]),
      pattern: this.#pick([0xff, 0x0f, 0x55, 0]),
      readable: !this.#chance(0.02),
    };
  }

  #liveCall(): SetCall | undefined {
    return this.#live.size === 0 ? undefined : this.#pick([...this.#live.values()]);
  }

  #version(): 1 | 2 {
    return this.#chance(0.5) ? 1 : 2;
  }

  #anySlot(live = this.#liveCall()?.slot): number {
    return live === undefined || this.#chance(0.2) ? this.#slot() : live;
  }

  /** Address space and id. */
  #slot(): number {
    const { slots } = this.#edges;
    const id = this.#chance(0.9) ? this.#integer(8) : this.#pick([slots - 1, slots, 0x7fff, 0xffff, slots - 2]);
    const space = this.#chance(0.9) ? 0 : this.#pick([1, 1, 2, 0x7fff, 0xffff]);
    return space * 0x10000 + id;
  }

  #flags(): number {
    const kind = this.#random();
    if (kind < 0.75) return this.#pick([0, 0, 1, 1, 2, 3]);
    if (kind < 0.9) return this.#pick([4, 4, 4, 5, 6, 7]);
    return kind < 0.97 ? (1 << this.#integer(32)) >>> 0 : this.#integer(2 ** 32);
  }

  #gpa(): bigint {
    const kind = this.#random();
    if (kind < 0.85) return BigInt(this.#integer(96)) * page;
    if (kind < 0.9) return (1n << BigInt(this.#edges.physicalAddressBits)) - BigInt(this.#integer(4)) * page;
    if (kind < 0.93) return (1n << 64n) - BigInt(1 + this.#integer(20)) * page;
    if (kind < 0.97) return BigInt(this.#integer(96)) * page + BigInt(this.#integer(4096));
    return this.#u64();
  }

  #size(): bigint {
    const kind = this.#random();
    if (kind < 0.9) return BigInt(1 + this.#integer(16)) * page;
    if (kind < 0.93) return BigInt(64 + this.#integer(200)) * page;
    if (kind < 0.932) return 1n << 30n;
    if (kind < 0.9321) return 1n << 34n;
    if (kind < 0.95) return (1n << 43n) + BigInt(this.#integer(2)) * page;
    if (kind < 0.98) return BigInt(1 + this.#integer(65536)) | 1n;
    // Too many pages, whatever the address.
    return (this.#u64() & -page) | (1n << 44n);
  }

  #host(): bigint {
    const kind = this.#random();
    const limit = BigInt(this.#edges.hostLimit);
    if (kind < 0.85) return BigInt(this.#integer(4)) << 20n;
    if (kind < 0.93) return limit - BigInt(this.#integer(20)) * page + this.#pick([0n, 0n, 1n]);
    if (kind < 0.96)
      return this.#pick([
        0xffff_8000_0000_0000n,
        1n << 62n,
        limit,
        limit + page,
        1n << 63n,
        -page & ((1n << 64n) - 1n),
      ]);
    if (kind < 0.98) return BigInt(this.#integer(4096));
    return this.#u64();
  }

  #file(): FileName {
    if (this.#chance(0.15)) return this.#pick<FileName>(['closed', 'ordinary', "another machine's"]);
    return this.#integer(Math.max(1, this.#files));
  }

  #u64(): bigint {
    return (BigInt(this.#integer(2 ** 32)) << 32n) | BigInt(this.#integer(2 ** 32));
  }

  #chance(probability: number): boolean {
    return this.#random() < probability;
  }

  #integer(below: number): number {
    return Math.floor(this.#random() * below);
  }

  #pick<T>(choices: readonly T[]): T {
    return choices[this.#integer(choices.length)]!;
  }
}
