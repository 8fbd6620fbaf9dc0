import { formatRange } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import type { HostMemory } from '../kvm/backend.js';
import type { Machine } from '../kvm/machine.js';
import type { CommitRecord } from '../kvm/slots-listener.js';
import type { Vcpu } from '../kvm/vcpu-owner.js';
import { MemoryRegion } from '../memory/region.js';
import { Player } from './player.js';
import type { Recording } from './recording.js';
import { Reshaper, reshapedBytes } from './reshaper.js';
import { freeAddress, stableWords } from './stable-ranges.js';
import { placeWatchGuest, readWatchCounters, watchBlockBytes } from './watch-guest.js';

const mebibyte = 0x100000;
/** Guest code lives at a place that nothing else uses; this one is free in most PCs. */
const usualCodeAddress = 0x70000000;
/** Watched words at most. */
const mostWords = 48;
/** How many rounds each guest goes between modes, so that the last garbage of one isn't counted in the next. */
const settlingRounds = 3;
const settlingPatience = 20_000;
/** Milliseconds of commits between two turns of the event loop. */
const stormSlice = 4;

/** What one mode's run came to. Times in microseconds, sizes in bytes. */
export interface ModeFigures {
  readonly mode: 'naive' | 'atomic';
  readonly policy: string;
  readonly commits: number;
  /** Commits in which a deleted range overlapped a created one. */
  readonly overlapping: number;
  /** Commits that took an inhibit window. */
  readonly inhibited: number;
  readonly ioctls: number;
  readonly spuriousExits: number;
  readonly wrongValues: number;
  readonly internalErrors: number;
  readonly windowMicros: { readonly p50: number; readonly p99: number; readonly max: number };
  readonly guestReads: number;
  readonly bytesTornDown: number;
}

interface Totals {
  reads: number;
  wrongValues: number;
  spuriousExits: number;
  internalErrors: number;
}

/**
 * Guests that watch their memory while it is reshaped: by growing, shrinking, splitting, merging and read-only flips
 * of a region of its own, and by a recording, turn about. Owner thread only.
 */
export class Experiment {
  readonly player: Player;
  readonly #machine: Machine;
  readonly #reshaper: Reshaper;
  readonly #code: HostMemory;
  readonly #vcpus: Vcpu[] = [];
  readonly #programs: readonly ReturnType<typeof placeWatchGuest>[];
  readonly #policy: string;
  #records: CommitRecord[] = [];

  /** Lays out memory. `machine` must hand its commit records to {@link record}. */
  constructor(machine: Machine, recording: Recording, vcpus: number, policy: string) {
    this.#machine = machine;
    this.#policy = policy;
    const codeBytes = vcpus * watchBlockBytes;
    const candidates = [usualCodeAddress, ...range(0x10000000, 0xf0000000, 4 * mebibyte)];
    const codeAddress = mustBeFree(freeAddress(recording, codeBytes, candidates));
    const reshapedAddress = mustBeFree(
      freeAddress(
        recording,
        reshapedBytes,
        candidates.filter((gpa) => gpa + reshapedBytes <= codeAddress || gpa >= codeAddress + codeBytes),
      ),
    );
    this.player = new Player(machine, recording);
    this.#code = machine.allocate(codeBytes);
    this.#reshaper = new Reshaper(machine, reshapedAddress);
    const code = MemoryRegion.ram(machine.map, 'guest code', codeBytes, { memory: this.#code });
    machine.transaction(() => machine.system.add(code, codeAddress));
    const watched = [...this.#reshaper.watched(), ...stableWords(recording, this.player.memories)].slice(0, mostWords);
    this.#programs = Array.from({ length: vcpus }, (_, index) => {
      const offset = index * watchBlockBytes;
      return placeWatchGuest(this.#code, offset, codeAddress + offset, watched);
    });
  }

  /** For the machine's `onCommit`. */
  record(record: CommitRecord): void {
    this.#records.push(record);
  }

  /** Plays the recording's first step and lets the guests run. */
  async start(): Promise<void> {
    this.player.step();
    for (const program of this.#programs) this.#vcpus.push(await this.#machine.addVcpu(program));
    for (const vcpu of this.#vcpus) vcpu.resume();
    await this.#settle();
  }

  /** One change of the region that is reshaped, and one step of the recording. */
  #step(): void {
    this.#reshaper.step();
    this.player.step();
  }

  /**
   * Commits back to back for `milliseconds`, letting the event loop turn every few. `stop` ends it early; `progress` is
   * told the share done, from 0 to 1.
   */
  async run(
    mode: 'naive' | 'atomic',
    milliseconds: number,
    stop: () => boolean,
    progress: (share: number) => void = () => {},
  ): Promise<ModeFigures> {
    this.#machine.updates = mode;
    this.#records = [];
    const before = this.#totals();
    const start = performance.now();
    for (let now = start; now - start < milliseconds && !stop(); now = performance.now()) {
      do this.#step();
      while (performance.now() - now < stormSlice);
      progress(Math.min(1, (performance.now() - start) / milliseconds));
      await new Promise((resolve) => setImmediate(resolve));
    }
    const records = this.#records;
    if (!stop()) await this.#settle();
    const after = this.#totals();
    const sum = (figure: (record: CommitRecord) => number) =>
      records.reduce((total, record) => total + figure(record), 0);
    const windows = records.flatMap(({ windowMicroseconds }) => windowMicroseconds ?? []).sort((a, b) => a - b);
    const quantile = (share: number) => Math.round(windows[Math.floor((windows.length - 1) * share)] ?? 0);
    return {
      mode,
      policy: this.#policy,
      commits: records.length,
      overlapping: sum(({ overlap }) => (overlap ? 1 : 0)),
      inhibited: windows.length,
      ioctls: sum(({ operations }) => operations),
      spuriousExits: after.spuriousExits - before.spuriousExits,
      wrongValues: after.wrongValues - before.wrongValues,
      internalErrors: after.internalErrors - before.internalErrors,
      windowMicros: { p50: quantile(0.5), p99: quantile(0.99), max: quantile(1) },
      guestReads: after.reads - before.reads,
      bytesTornDown: sum(({ bytesTornDown }) => bytesTornDown),
    };
  }

  #counters() {
    const simulated = this.#machine.backend === 'simulated';
    return this.#vcpus.map((vcpu, index) => readWatchCounters(simulated, vcpu, this.#code, index * watchBlockBytes));
  }

  #totals(): Totals {
    const totals: Totals = { reads: 0, wrongValues: 0, spuriousExits: 0, internalErrors: 0 };
    for (const { reads, wrongValues } of this.#counters()) {
      totals.reads += reads;
      totals.wrongValues += wrongValues;
    }
    for (const { counters } of this.#vcpus) {
      totals.spuriousExits += counters.spuriousExits;
      totals.internalErrors += counters.internalErrors;
    }
    return totals;
  }

  async #settle(): Promise<void> {
    const goals = this.#counters().map(({ rounds }) => rounds + settlingRounds);
    const deadline = performance.now() + settlingPatience;
    while (this.#counters().some(({ rounds }, index) => rounds < goals[index]!)) {
      if (performance.now() > deadline) {
        const seen = `rounds: ${this.#counters().map(({ rounds }) => rounds)}, wanted: ${goals}`;
        throw new MemorySlotsError('TIMEOUT', `the guests made no progress for ${settlingPatience} ms (${seen})`);
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}

function mustBeFree(gpa: number | undefined): number {
  if (gpa !== undefined) return gpa;
  const asked = formatRange(0x10000000, 0xe0000000);
  throw new MemorySlotsError('INVALID', `the recording leaves no room for the guests' own memory in ${asked}`);
}

function* range(start: number, end: number, step: number): Iterable<number> {
  for (let value = start; value < end; value += step) yield value;
}
