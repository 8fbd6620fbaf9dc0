import { setTimeout as sleep } from 'node:timers/promises';
import { MemorySlotsError } from '../core/errors.js';
import { compareRanges, formatTextRange, jsonRange, readViews, type TextRange } from '../memory/flat-text.js';
import { type Command, UsageError } from './command.js';
import { Qmp } from './qmp.js';

/** Milliseconds between attempts to reach a QEMU that went away. */
const retryDelay = 300;

/** Ranges by the address space they are mapped in. */
type SlotMap = ReadonlyMap<string, readonly TextRange[]>;

/** What happened at one moment, in the form of a line of `--json`. */
type Event =
  | { readonly event: 'connected' }
  | { readonly event: 'disconnected'; readonly reason: string }
  | {
      readonly event: 'change';
      readonly addressSpace: string;
      readonly removed: readonly TextRange[];
      readonly added: readonly TextRange[];
    };

/** The ranges that KVM maps, by address space: of those that share a map, `memory` or else the first. */
function slotsOf(flat: string): SlotMap {
  const slots = new Map<string, readonly TextRange[]>();
  for (const { addressSpaces, ranges } of readViews(flat)) {
    const mapped = ranges.filter(({ kvm }) => kvm);
    const names = addressSpaces.map(({ name }) => name);
    const name = names.includes('memory') ? 'memory' : names[0];
    if (mapped.length > 0 && name !== undefined) slots.set(name, mapped);
  }
  return slots;
}

/** Tells the changes of one QEMU until it goes away, which rejects, or `signal` is raised, which resolves. */
async function follow(qmp: Qmp, interval: number, tell: (event: Event) => void, signal: AbortSignal): Promise<void> {
  tell({ event: 'connected' });
  let before: SlotMap = new Map();
  while (!signal.aborted) {
    const now = slotsOf(await qmp.monitor('info mtree -f'));
    for (const addressSpace of new Set([...before.keys(), ...now.keys()])) {
      const { removed, added } = compareRanges(before.get(addressSpace) ?? [], now.get(addressSpace) ?? []);
      if (removed.length > 0 || added.length > 0) tell({ event: 'change', addressSpace, removed, added });
    }
    before = now;
    await pause(interval, signal);
  }
}

/** Connects again and again to the socket at `path`, and tells what happens there, until `signal` is raised. */
async function watch(path: string, interval: number, tell: (event: Event) => void, signal: AbortSignal): Promise<void> {
  let qmp: Qmp | undefined = await Qmp.connect(path, signal);
  while (!signal.aborted) {
    try {
      qmp ??= await Qmp.connect(path, signal);
    } catch {
      await pause(retryDelay, signal);
      continue;
    }
    const stop = () => qmp?.close();
    signal.addEventListener('abort', stop);
    try {
      await follow(qmp, interval, tell, signal);
    } catch (error) {
      if (!(error instanceof MemorySlotsError) || error.code === 'INVALID') throw error;
      if (!signal.aborted) tell({ event: 'disconnected', reason: error.message });
      await pause(retryDelay, signal);
    } finally {
      signal.removeEventListener('abort', stop);
      qmp.close();
      qmp = undefined;
    }
  }
}

/** Waits for some milliseconds, or until `signal` is raised. */
async function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  await sleep(milliseconds, undefined, { signal }).catch(() => undefined);
}

function asText(time: string, event: Event): string {
  if (event.event === 'connected') return `${time} connected\n`;
  if (event.event === 'disconnected') return `${time} disconnected: ${event.reason}\n`;
  const line = (sign: string) => (range: TextRange) =>
    `${time} ${event.addressSpace} ${sign} ${formatTextRange({ ...range, kvm: false })}\n`;
  return [...event.removed.map(line('-')), ...event.added.map(line('+'))].join('');
}

function asJson(time: string, event: Event): string {
  if (event.event !== 'change') return `${JSON.stringify({ time, ...event })}\n`;
  const { removed, added } = event;
  return `${JSON.stringify({ time, ...event, removed: removed.map(jsonRange), added: added.map(jsonRange) })}\n`;
}

/** `memslots watch`. */
export const command: Command = {
  name: 'watch',
  summary: 'Prints each change of the ranges that KVM maps in a running QEMU',
  options: [
    { name: 'qmp', value: 'SOCKET', help: "the Unix socket QEMU was given with '-qmp unix:SOCKET,server=on,wait=off'" },
    { name: 'interval', value: 'MS', help: 'milliseconds between looks (200)' },
    { name: 'json', help: 'print one JSON object a line' },
  ],
  details: [
    "QEMU is asked for 'info mtree -f' again and again: what comes and goes between two looks isn't seen. The first look",
    'shows all ranges as new. Without KVM there are none. If QEMU goes away, the command waits for another one at the',
    'same socket. Ctrl-C ends it.',
    '',
    "With --json, each line has 'time' and 'event' (connected, disconnected, change). A change has 'addressSpace',",
    "'removed' and 'added': ranges as 'memslots flatten --json' prints them.",
  ].join('\n'),
  examples: ['memslots watch --qmp /run/vm.qmp', 'memslots watch --qmp /run/vm.qmp --json --interval 50'],
  async run(options) {
    const path = options.string('qmp');
    if (path === undefined) throw new UsageError('watch needs --qmp SOCKET');
    const interval = options.integer('interval', 200, 1, 3_600_000);
    const format = options.has('json') ? asJson : asText;
    const ended = new AbortController();
    const end = () => ended.abort();
    // A reader that goes away, as `head` does, ends the command too.
    process.stdout.on('error', end);
    process.on('SIGINT', end);
    process.on('SIGTERM', end);
    try {
      const tell = (event: Event) => void process.stdout.write(format(new Date().toISOString(), event));
      await watch(path, interval, tell, ended.signal);
      return 0;
    } catch (error) {
      if (ended.signal.aborted) return 0;
      throw error;
    } finally {
      process.stdout.off('error', end);
      process.off('SIGINT', end);
      process.off('SIGTERM', end);
    }
  },
};
