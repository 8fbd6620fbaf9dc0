import { fileURLToPath } from 'node:url';
import { styleText } from 'node:util';
import { formatSize } from '../core/checks.js';
import { Machine } from '../kvm/machine.js';
import { Experiment, type ModeFigures } from '../replay/experiment.js';
import { type Recording, recordingOf } from '../replay/recording.js';
import { readTraceFile } from '../trace/file.js';
import { groupTransactions } from '../trace/index.js';
import type { Command, Values } from './command.js';
import { SlotLog } from './slot-log.js';

const defaultTrace = fileURLToPath(new URL('../../test/data/qemu/churn-pc-qemu10.0.log', import.meta.url));
const modes = ['naive', 'atomic'] as const;

/** What the guests' own memory takes beside the recording's, with room to spare. */
const ownMemory = 64 * 1024 * 1024;

export const command: Command = {
  name: 'demo',
  summary: "Reshapes a running VM's memory, naively and atomically, and counts what its guests saw",
  options: [
    { name: 'backend', value: 'NAME', help: 'auto (real KVM if it works), kvm, or simulated' },
    { name: 'seconds', value: 'N', help: 'how long both modes take together (default 10)' },
    { name: 'vcpus', value: 'N', help: 'vCPUs, 1 to 64 (default 2)' },
    { name: 'trace', value: 'FILE', help: 'a log to play (default: a recorded QEMU that reshapes a PC)' },
    { name: 'log', value: 'FILE', help: "write each slot call, as in QEMU's own log" },
    { name: 'json', help: 'print one JSON object and nothing else' },
  ],
  details: [
    'Each vCPU runs a guest that reads known words for ever. Meanwhile memory is grown, shrunk, split, merged and made',
    'read-only, and the recording is played: first deleting and creating slots while vCPUs run, then atomically.',
    '',
    'Exit status: 0 if the atomic mode showed no guest a hole and the naive one did (the control), else 1.',
  ].join('\n'),
  examples: ['memslots demo', 'memslots demo --backend simulated --seconds 4', 'memslots demo --json | jq .modes'],
  run,
};

async function run(options: Values): Promise<number> {
  const seconds = options.integer('seconds', 10, 1, 86_400);
  const vcpus = options.integer('vcpus', 2, 1, 64);
  const backend = options.choice('backend', ['auto', 'kvm', 'simulated']);
  const json = options.has('json');
  const recording = await recordingOf(groupTransactions(readTraceFile(options.string('trace') ?? defaultTrace)));
  const memoryBytes = recording.memories.reduce((sum, { size }) => sum + size, ownMemory + vcpus * 0x10000);

  const slotLog = options.string('log') === undefined ? undefined : new SlotLog(options.string('log')!);
  let experiment: Experiment | undefined;
  const policy = 'exact';
  const machine = await Machine.create({
    backend,
    policy,
    // Nobody here asks which pages were written.
    discardDirty: true,
    simulated: { memoryBytes },
    onCommit: (record) => experiment?.record(record),
    ...(slotLog === undefined ? {} : { onEvent: slotLog.write }),
  });
  let interrupted = false;
  const interrupt = () => {
    interrupted = true;
  };
  process.on('SIGINT', interrupt);
  process.on('SIGTERM', interrupt);
  try {
    if (!json) process.stdout.write(`Backend: ${machine.backend} (${machine.why}); ${vcpus} vCPUs\n`);
    experiment = new Experiment(machine, recording, vcpus, policy);
    await experiment.start();
    const figures: ModeFigures[] = [];
    for (const mode of modes) {
      if (interrupted) break;
      figures.push(
        await experiment.run(mode, (seconds * 1000) / modes.length, () => interrupted, progress(mode, json)),
      );
    }
    const { skipped } = experiment.player;
    if (json) {
      const { backend: kind, why } = machine;
      process.stdout.write(`${JSON.stringify({ backend: kind, why, vcpus, modes: figures, skipped })}\n`);
    } else {
      process.stdout.write(table(figures, recording, skipped));
    }
    return interrupted ? 130 : verdict(figures, json);
  } finally {
    process.removeListener('SIGINT', interrupt);
    process.removeListener('SIGTERM', interrupt);
    await machine.close();
    slotLog?.close();
  }
}

/** A line that is overwritten, on a terminal; nothing elsewhere. */
function progress(mode: string, json: boolean): (share: number) => void {
  if (json || !process.stderr.isTTY) return () => {};
  let shown = -1;
  return (share) => {
    const percent = Math.round(share * 100);
    if (percent === shown) return;
    shown = percent;
    process.stderr.write(percent === 100 ? '\r\x1b[K' : `\r${mode.padEnd(6)} ${String(percent).padStart(3)} %`);
  };
}

function table(figures: readonly ModeFigures[], recording: Recording, skipped: number): string {
  const rows: [string, (figures: ModeFigures) => string][] = [
    ['commits', ({ commits }) => `${commits}`],
    ['overlapping commits', ({ overlapping }) => `${overlapping}`],
    ['inhibit windows', ({ inhibited }) => `${inhibited}`],
    ['ioctls', ({ ioctls }) => `${ioctls}`],
    ['torn down', ({ bytesTornDown }) => formatSize(bytesTornDown)],
    [
      'window p50 / p99 / max',
      ({ windowMicros: { p50, p99, max }, mode }) => (mode === 'naive' ? '-' : `${p50} / ${p99} / ${max} µs`),
    ],
    ['guest reads', ({ guestReads }) => `${guestReads}`],
    ['spurious exits', ({ spuriousExits }) => `${spuriousExits}`],
    ['wrong values seen', ({ wrongValues }) => `${wrongValues}`],
    ['internal errors', ({ internalErrors }) => `${internalErrors}`],
  ];
  const line = (label: string, cells: readonly string[]) =>
    `${label.padEnd(24)}${cells.map((cell) => ` ${cell.padStart(23)}`).join('')}\n`;
  const header = line(
    '',
    figures.map(({ mode, policy }) => `${mode} (${policy})`),
  );
  const body = rows.map(([label, cell]) => line(label, figures.map(cell))).join('');
  const steps = `The recording has ${recording.steps.length} transactions.`;
  const left = skipped > 0 ? ` ${skipped} slots of address spaces that this KVM lacks were skipped.` : '';
  return `\n${bold(header)}${body}\n${steps}${left}\n`;
}

function bold(text: string): string {
  return process.stdout.isTTY && !process.env.NO_COLOR ? styleText('bold', text) : text;
}

function verdict(figures: readonly ModeFigures[], json: boolean): number {
  const [naive, atomic] = figures;
  const held = atomic?.spuriousExits === 0 && atomic.wrongValues === 0 && atomic.internalErrors === 0;
  const couldFail = naive !== undefined && naive.spuriousExits + naive.wrongValues > 0;
  if (!json) {
    if (!held) process.stdout.write('FAILED: guests saw holes in the atomic mode.\n');
    else if (!couldFail)
      process.stdout.write('NOT SHOWN: no guest saw a hole in the naive mode, so this proves nothing.\n');
    else process.stdout.write('No guest saw a hole in the atomic mode; in the naive one they did.\n');
  }
  return held && couldFail ? 0 : 1;
}
