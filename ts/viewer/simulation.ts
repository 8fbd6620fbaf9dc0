import { MemorySlotsError } from '../core/errors.js';
import type { GuestProgram } from '../kvm/backend.js';
import { lineWords } from '../kvm/gate.js';
import type { CommitRecord } from '../kvm/slots-listener.js';
import type { VcpuWorkerData } from '../kvm/vcpu-worker.js';
import { Player } from '../replay/player.js';
import type { Recording } from '../replay/recording.js';
import { type Reshape, Reshaper, reshapedBytes, reshapes } from '../replay/reshaper.js';
import { stableWords } from '../replay/stable-ranges.js';
import type { WatchedWord } from '../replay/watch-guest.js';
import { SimulatedMachine } from './simulated-machine.js';
import type {
  ShownCommit,
  ShownSlot,
  SimulationMode,
  SimulationReport,
  UpdateFigures,
  Updates,
} from './simulation-messages.js';
import { SteppedVcpus } from './stepped-vcpus.js';

const mebibyte = 0x100000;
/** Milliseconds that one slice of work takes, and between slices. */
const slice = 6;
const pause = 4;
/** Milliseconds between two reports. */
const reportInterval = 60;
/** Rounds that each guest goes before its counters count for the other kind of updates. */
const settlingRounds = 2;
const settlingPatience = 5_000;
const mostWords = 48;
/** Microseconds that KVM takes for a call in a storm: as on a real host, or threads would hardly see a hole. */
const usualCall = 15;
/** Milliseconds that each state in between lasts in a single change, so that it is seen whoever has the processors. */
const slowMotion = 10;

/** How a {@link Simulation} is made. */
export interface SimulationOptions {
  readonly mode: SimulationMode;
  readonly vcpus: number;
  readonly module: WebAssembly.Module;
  readonly recording: Recording | undefined;
  /** Starts the thread of a vCPU; resolves when it is ready. For `threads` only. */
  readonly startVcpu: (data: VcpuWorkerData) => Promise<void>;
  readonly report: (report: SimulationReport) => void;
}

/** A mutable {@link UpdateFigures}. */
type Counted = { -readonly [Key in keyof UpdateFigures]: number };

/**
 * Guests that read known words for ever while their memory is reshaped under them. Lives in a worker, since the owner of
 * a machine sleeps; as a stepper it needs no other thread.
 */
export class Simulation {
  readonly #machine: SimulatedMachine;
  readonly #report: (report: SimulationReport) => void;
  readonly #lines: number[] = [];
  readonly #reshaper: Reshaper | undefined;
  readonly #player: Player | undefined;
  readonly #stepped: SteppedVcpus | undefined;
  readonly #figures: Record<Updates, Counted> = {
    naive: { commits: 0, windows: 0, reads: 0, wrongValues: 0 },
    atomic: { commits: 0, windows: 0, reads: 0, wrongValues: 0 },
  };
  readonly #shown: ShownSlot[] = [];
  #commit: ShownCommit = { before: [], calls: [], window: undefined };
  /** What the guests had counted when it was last put down. */
  #counted = { reads: 0, wrongValues: 0 };
  #made: readonly Reshape[] = [];
  #next = 0;
  #storm = false;
  #changing = false;
  #slow = false;

  private constructor({ mode, module, recording, report }: SimulationOptions) {
    this.#report = report;
    const memory = recording?.memories.reduce((sum, { size }) => sum + size, 0) ?? reshapedBytes;
    this.#machine = new SimulatedMachine({
      module,
      shared: mode === 'threads',
      memoryBytes: memory,
      callMicroseconds: mode === 'threads' ? usualCall : 0,
      onCommit: (record) => this.#record(record),
    });
    this.#machine.updates = 'naive';
    if (recording === undefined) {
      this.#reshaper = new Reshaper(this.#machine, 256 * mebibyte);
    } else {
      this.#player = new Player(this.#machine, recording);
      this.#player.step();
    }
    if (mode === 'stepper') {
      this.#stepped = new SteppedVcpus(this.#machine);
    } else {
      const never = new Int32Array(new SharedArrayBuffer(4));
      this.#machine.backend.kernel.addHooks({
        published: () => {
          if (this.#slow) Atomics.wait(never, 0, 0, slowMotion);
        },
      });
    }
  }

  /** Makes a machine, lets its guests run, and reports from then on. Throws what making a machine throws. */
  static async start(options: SimulationOptions): Promise<Simulation> {
    const simulation = new Simulation(options);
    await simulation.#addVcpus(options);
    await simulation.#settle();
    simulation.#forget();
    const work = (): void => {
      simulation.#work();
      setTimeout(work, pause);
    };
    work();
    setInterval(() => simulation.#tell(), reportInterval);
    return simulation;
  }

  async #addVcpus({ vcpus, recording, startVcpu }: SimulationOptions): Promise<void> {
    const { arena, backend, inhibitor, sections } = this.#machine;
    const words: WatchedWord[] = this.#reshaper?.watched() ?? stableWords(recording!, this.#player!.memories);
    if (words.length === 0) throw new MemorySlotsError('INVALID', 'no memory stays mapped throughout the recording');
    const watched = words.slice(0, mostWords);
    for (let index = 0; index < vcpus; index++) {
      const line = inhibitor.allocateLine();
      inhibitor.add(index, line, { kick: () => backend.kick(index) });
      this.#lines.push(line);
      const guest: GuestProgram = {
        steps: watched.map(({ gpa, value }) => ({ kind: 'check', gpa, size: 4, expected: value })),
      };
      if (this.#stepped !== undefined) {
        this.#stepped.add(index, line, guest);
        continue;
      }
      await startVcpu({
        arena: arena.handle(),
        setup: backend.createVcpu(index, line, guest),
        control: inhibitor.control,
        line,
        map: sections.offset,
        scratch: arena.allocate(arena.layout.range.bytes),
      });
      inhibitor.resume(index);
    }
  }

  /** From now on, slots are replaced in this way. Resolves when no guest holds anything of the way before. */
  async setUpdates(updates: Updates): Promise<void> {
    this.#changing = true;
    try {
      await this.#settle();
      this.#putDown();
      this.#machine.updates = updates;
    } finally {
      this.#changing = false;
    }
    this.#tell();
  }

  /** Makes a change of the region. Throws `STATE` while a recording is played. */
  make(reshape: Reshape): void {
    if (this.#reshaper === undefined) throw new MemorySlotsError('STATE', 'a recording is being played');
    this.#slowly(() => this.#make(reshape));
  }

  /** Makes the next change: of the region, or of the recording. */
  step(): void {
    this.#slowly(() => this.#step());
  }

  #slowly(change: () => void): void {
    this.#slow = true;
    try {
      change();
    } finally {
      this.#slow = false;
    }
    this.#tell();
  }

  set storm(storm: boolean) {
    this.#storm = storm;
    this.#tell();
  }

  #step(): void {
    if (this.#reshaper === undefined) this.#player!.step();
    else this.#make(reshapes[this.#next++ % reshapes.length]!);
  }

  #make(reshape: Reshape): void {
    this.#reshaper!.make(reshape);
    this.#made = [...this.#made.filter((other) => other !== reshape), reshape];
  }

  #work(): void {
    const end = performance.now() + slice;
    if (this.#stepped === undefined && (!this.#storm || this.#changing)) return;
    do {
      if (this.#storm && !this.#changing) this.#step();
      for (let turn = 0; turn < 20; turn++) this.#stepped?.turn();
    } while (performance.now() < end);
  }

  #record(record: CommitRecord): void {
    const figures = this.#figures[this.#machine.updates];
    figures.commits++;
    if (record.windowMicroseconds !== undefined) figures.windows++;
    const calls = record.calls().map(({ kind, slot }) => ({ kind, slot }));
    this.#commit = { before: [...this.#shown], calls, window: record.windowMicroseconds };
    for (const { kind, slot } of calls) {
      const index = this.#shown.findIndex(
        ({ id, addressSpace }) => id === slot.id && addressSpace === slot.addressSpace,
      );
      const { addressSpace, id, gpa, size, host, flags } = slot;
      const shown = { addressSpace, id, gpa, size, host, flags: flags & 7 };
      if (kind === 'create') this.#shown.push(shown);
      else if (kind === 'delete') this.#shown.splice(index, 1);
      else this.#shown[index] = shown;
    }
  }

  #vcpu(line: number): { reads: number; wrongValues: number; rounds: number } {
    const word = (name: keyof typeof lineWords) =>
      Atomics.load(this.#machine.arena.unsigned, (line >>> 2) + lineWords[name]);
    return { reads: word('guestReads'), wrongValues: word('guestWrongValues'), rounds: word('guestRounds') };
  }

  #totals(): { reads: number; wrongValues: number } {
    const vcpus = this.#lines.map((line) => this.#vcpu(line));
    const sum = (figure: 'reads' | 'wrongValues') => vcpus.reduce((total, vcpu) => total + vcpu[figure], 0);
    return { reads: sum('reads'), wrongValues: sum('wrongValues') };
  }

  /** Adds what the guests have counted since the last time to the present way of updating. */
  #putDown(): void {
    const totals = this.#totals();
    const figures = this.#figures[this.#machine.updates];
    figures.reads += totals.reads - this.#counted.reads;
    figures.wrongValues += totals.wrongValues - this.#counted.wrongValues;
    this.#counted = totals;
  }

  /** What happened while all was set up counts for nothing. */
  #forget(): void {
    this.#counted = this.#totals();
    for (const figures of Object.values(this.#figures)) {
      Object.assign(figures, { commits: 0, windows: 0, reads: 0, wrongValues: 0 });
    }
  }

  #tell(): void {
    this.#putDown();
    const { naive, atomic } = this.#figures;
    this.#report({
      kind: 'state',
      updates: this.#machine.updates,
      figures: { naive: { ...naive }, atomic: { ...atomic } },
      vcpus: this.#lines.map((line) => this.#vcpu(line)),
      commit: this.#commit,
      position: this.#player === undefined ? undefined : { next: this.#player.position, length: this.#player.length },
      storm: this.#storm,
      made: this.#made,
    });
  }

  /** Resolves when every guest has gone some rounds. Throws `TIMEOUT` if one doesn't. */
  async #settle(): Promise<void> {
    const rounds = () => this.#lines.map((line) => this.#vcpu(line).rounds);
    const goals = rounds().map((count) => count + settlingRounds);
    const deadline = performance.now() + settlingPatience;
    while (rounds().some((count, index) => count < goals[index]!)) {
      if (performance.now() > deadline) {
        throw new MemorySlotsError('TIMEOUT', `the guests made no progress for ${settlingPatience} ms`);
      }
      this.#stepped?.turn();
      if (this.#stepped === undefined) await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }
}
