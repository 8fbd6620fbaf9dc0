import { formatRange, formatSize } from '../core/checks.js';
import { Machine } from '../kvm/machine.js';
import { type Policy, pcSplitPoints } from '../kvm/planner.js';
import { ReplayCounter, type ReplayFigures } from '../replay/figures.js';
import { Player } from '../replay/player.js';
import { recordingOf } from '../replay/recording.js';
import { readTraceFile } from '../trace/file.js';
import { groupTransactions } from '../trace/index.js';
import { type Command, UsageError, type Values } from './command.js';
import { SlotLog } from './slot-log.js';

export const command: Command = {
  name: 'replay',
  summary: "Plays a log's transactions through the engine and counts what it takes",
  operands: 'LOG',
  options: [
    { name: 'backend', value: 'NAME', help: 'simulated (default) or kvm' },
    { name: 'policy', value: 'NAME', help: 'stable (default), or exact: slots mirror sections, as in QEMU' },
    { name: 'split-points', value: 'LIST', help: 'pc (default), none, or addresses parted by commas; for stable' },
    { name: 'log', value: 'FILE', help: "write each slot call, as in QEMU's own log" },
    { name: 'lenient', help: 'skip and count lines that are malformed' },
    { name: 'json', help: 'print one JSON object and nothing else' },
  ],
  details: 'LOG is anything that analyze reads; - is the standard input. Of several VMs the first is played.',
  examples: ['memslots replay qemu.log', 'memslots replay --policy exact --json qemu.log | jq .ioctls'],
  run,
};

async function run(options: Values, operands: readonly string[]): Promise<number> {
  const [log, ...more] = operands;
  if (log === undefined || more.length > 0) throw new UsageError('replay takes one LOG');
  const backend = options.choice('backend', ['simulated', 'kvm']);
  const policy: Policy = options.choice('policy', ['stable', 'exact']);
  const splitPoints = splitPointsOf(options.string('split-points') ?? 'pc');
  const trace = readTraceFile(log, { lenient: options.has('lenient') });
  const recording = await recordingOf(groupTransactions(trace));
  const memoryBytes = recording.memories.reduce((sum, { size }) => sum + size, 0);
  const counter = new ReplayCounter();
  const slotLog = options.string('log') === undefined ? undefined : new SlotLog(options.string('log')!);
  const machine = await Machine.create({
    backend,
    policy,
    splitPoints,
    // QEMU reads no dirty bits at commit, so the yardstick doesn't either.
    discardDirty: policy === 'exact',
    simulated: { profile: 'x86-smm', memoryBytes, backed: false, callMicroseconds: 0 },
    onCommit: counter.record,
    ...(slotLog === undefined ? {} : { onEvent: slotLog.write }),
  });
  try {
    const figures = counter.play(machine, new Player(machine, recording));
    if (recording.otherVms > 0) process.stderr.write(`memslots: ${recording.otherVms} further VMs were left out\n`);
    process.stdout.write(options.has('json') ? `${JSON.stringify(figures)}\n` : text(figures, policy));
    return 0;
  } finally {
    await machine.close();
    slotLog?.close();
  }
}

function splitPointsOf(list: string): readonly number[] {
  if (list === 'pc') return pcSplitPoints;
  if (list === 'none') return [];
  return list.split(',').map((item) => {
    const address = /^(0x[0-9a-f]+|\d+)$/i.test(item) ? Number(item) : Number.NaN;
    if (!Number.isSafeInteger(address) || address % 4096 !== 0) {
      throw new UsageError(`--split-points takes pc, none, or page-aligned addresses parted by commas, not '${item}'`);
    }
    return address;
  });
}

function text(figures: ReplayFigures, policy: Policy): string {
  const rows: [string, string | number][] = [
    ['policy', policy],
    ['transactions', figures.steps],
    [
      'ioctls',
      `${figures.ioctls} (${figures.creates} creates, ${figures.deletes} deletes, ${figures.flagChanges} flags)`,
    ],
    ['inhibit windows', `${figures.inhibits} (${figures.inhibitsForOverlap} for overlap)`],
    ['torn down', formatSize(figures.bytesTornDown)],
    ['of it for nothing', formatSize(figures.bytesRemapped)],
    ['most slots in use', figures.maxSlots],
  ];
  if (figures.skipped > 0) rows.push(['slots skipped', `${figures.skipped} of address spaces that this KVM lacks`]);
  const layout = figures.finalLayout.map(
    ({ as, gpa, size, flags }) =>
      `  ${as}: ${formatRange(gpa, size)}${flags & 2 ? ' read-only' : ''}${flags & 1 ? ' logged' : ''}`,
  );
  return `${rows.map(([label, value]) => `${label.padEnd(20)}${value}`).join('\n')}\nfinal layout\n${layout.join('\n')}\n`;
}
