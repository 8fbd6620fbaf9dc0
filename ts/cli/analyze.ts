import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { formatRange, formatSize } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import { PlannerEstimator } from '../replay/estimator.js';
import type { Analysis, TransactionSummary } from '../trace/analysis.js';
import { Analyzer } from '../trace/analyze.js';
import type { Slot, TraceFormat } from '../trace/event.js';
import { readTraceFile } from '../trace/file.js';
import { formatMicros } from '../trace/findings.js';
import { PerfettoTrace } from '../trace/perfetto.js';
import { type Command, UsageError } from './command.js';

const formats: Record<TraceFormat, string> = {
  qemu: "QEMU's log",
  strace: "strace's output",
  mtree: 'snapshots of info mtree -f',
  json: 'JSON trace',
};

export const command: Command = {
  name: 'analyze',
  summary: "Read another VMM's log and say what its guests could have seen.",
  operands: 'LOG',
  options: [
    { name: 'json', help: 'print one JSON object instead of text' },
    { name: 'lenient', help: 'skip and count lines that should be readable but are not' },
    { name: 'limit', value: 'N', help: 'list at most N holes, findings and transactions (10000)' },
    { name: 'perfetto', value: 'FILE', help: 'also write a Chrome trace, which ui.perfetto.dev opens' },
  ],
  details: [
    "LOG is QEMU's log of kvm_set_user_memory (-trace kvm_set_user_memory -msg timestamp=on), strace's output (strace",
    '-f -tt -e trace=ioctl), info mtree -f, or a log of memslots itself, also compressed with gzip; - is the standard',
    'input. A transaction begins at the first delete after a create, and where the address space or the VM changes.',
    'Exit status: 0 if the log was read, whatever was found; 1 if it could not be read.',
  ].join('\n'),
  examples: [
    'memslots analyze qemu.log',
    'memslots analyze --json strace.log.gz',
    'memslots analyze --perfetto out.json qemu.log',
  ],

  async run(options, operands) {
    const [path, ...more] = operands;
    if (path === undefined || more.length > 0) throw new UsageError('analyze takes one LOG');
    const analysis = await analyzeFile(path, {
      lenient: options.has('lenient'),
      limit: options.integer('limit', 10_000, 1, 1e7),
      perfetto: options.string('perfetto'),
    });
    process.stdout.write(options.has('json') ? `${JSON.stringify(toJson(analysis))}\n` : report(path, analysis));
    return 0;
  },
};

async function analyzeFile(
  path: string,
  { lenient, limit, perfetto }: { lenient: boolean; limit: number; perfetto: string | undefined },
): Promise<Analysis> {
  const bar = progress();
  const trace = readTraceFile(path, { lenient, onProgress: bar.show });
  const drawing = perfetto === undefined ? undefined : new PerfettoTrace();
  const analyzer = new Analyzer({
    limit,
    engine: new PlannerEstimator(),
    ...(drawing === undefined ? {} : { observer: drawing }),
  });
  const partial = `${perfetto}.partial`;
  let file: FileHandle | undefined;
  try {
    if (drawing !== undefined) file = await openForWriting(partial);
    for await (const batch of trace.batches()) {
      for (const event of batch) analyzer.push(event);
      if (drawing !== undefined) await file?.write(drawing.take());
    }
    const analysis = analyzer.finish(trace);
    if (analysis.format === null) {
      const { lines, tooLong } = analysis.counts;
      const why = tooLong > 0 ? ` (${tooLong} of them too long)` : '';
      throw new MemorySlotsError('INVALID', `none of the ${lines} lines of ${path}${why} is of a kind known here`);
    }
    if (drawing !== undefined && file !== undefined && perfetto !== undefined) {
      await file.write(drawing.finish());
      await file.close();
      file = undefined;
      await rename(partial, perfetto);
    }
    return analysis;
  } finally {
    bar.clear();
    if (file !== undefined) {
      await file.close();
      await rm(partial, { force: true });
    }
  }
}

async function openForWriting(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'w');
  } catch (error) {
    throw new MemorySlotsError('INVALID', `${path} can't be written: ${(error as Error).message}`, { cause: error });
  }
}

/** How far the file is read, on a terminal only. */
function progress(): { show(read: number, size: number): void; clear(): void } {
  let last = Date.now();
  let shown = false;
  return {
    show(read, size) {
      if (!process.stderr.isTTY || Date.now() - last < 100) return;
      last = Date.now();
      shown = true;
      const part = size > 0 ? ` (${Math.floor((read / size) * 100)}%)` : '';
      process.stderr.write(`\r${formatSize(read - (read % 2 ** 20))} read${part}\x1b[K`);
    },
    clear() {
      if (shown) process.stderr.write('\r\x1b[K');
    },
  };
}

/** The analysis as `--json` prints it. */
function toJson(analysis: Analysis): object {
  const { timeline, holes, ...rest } = analysis;
  return {
    ...rest,
    holes: holes.map(({ transaction, addressSpace, gpa, size, micros, reshape, inhibited }) => ({
      transaction,
      as: addressSpace,
      gpa,
      size,
      micros,
      reshape,
      ...(inhibited ? { inhibited } : {}),
    })),
    timeline: timeline.map(({ addressSpace, deleted, created, ...summary }) => ({
      ...summary,
      as: addressSpace,
      deleted: deleted.map(slotJson),
      created: created.map(slotJson),
    })),
  };
}

function slotJson({ slot, flags, gpa, size, hostAddress }: Slot): object {
  return { slot, flags, gpa, size, hostAddress };
}

function report(path: string, analysis: Analysis): string {
  const { counts, vms, updates, transactions, failures, unchanged, maxSlots, engine } = analysis;
  const lines = [
    `${path}: ${formats[analysis.format!]}, ${counts.lines} lines${counted(counts)}`,
    `${many(vms, 'VM')}, ${many(updates, 'slot call')} in ${many(transactions, 'transaction')}: ${failures} failed, ${unchanged} changed nothing; at most ${many(maxSlots, 'slot')} in use`,
    `${formatSize(analysis.bytesTornDown)} torn down, of which ${formatSize(analysis.bytesRemapped)} came back as the same memory; ${many(analysis.totalHoles, 'hole')}`,
  ];
  if (analysis.snapshots > 0) lines.push(many(analysis.snapshots, 'snapshot'));
  if (analysis.timeline.length > 0)
    lines.push('', 'Transactions', ...timeline(analysis), ...more(analysis.timeline.length, transactions));
  lines.push('', analysis.findings.length === 0 ? 'No findings' : 'Findings, worst first');
  for (const { severity, text } of analysis.findings) lines.push(`  ${coloured(severity)} ${text}`);
  lines.push(...more(analysis.findings.length, analysis.totalFindings));
  if (engine !== null) {
    const { policy, ioctls, windows, bytesTornDown } = engine;
    lines.push(
      '',
      `This engine (${policy}): ${many(ioctls, 'ioctl')}, ${many(windows, 'inhibit window')}, ${formatSize(bytesTornDown)} torn down`,
    );
  }
  return `${lines.join('\n')}\n`;
}

function timeline({ timeline, start, vms }: Analysis): string[] {
  const head = [
    '#',
    'at',
    'AS',
    'deletes',
    'creates',
    'moves',
    'flags',
    'torn down',
    'holes',
    'failed',
    'ids reused',
    'slots',
  ];
  const rows = timeline.map((row) => [
    String(row.transaction),
    row.time === null || start === null ? `line ${row.line}` : formatMicros(Math.max(row.time - start, 0)),
    vms > 1 ? `${row.vm}, ${row.addressSpace}` : String(row.addressSpace),
    ...[row.deletes, row.creates, row.moves, row.flagChanges].map(String),
    formatSize(row.bytesTornDown),
    ...[row.holes, row.failures, row.idsReused, row.slots].map(String),
  ]);
  const widths = head.map((title, column) =>
    rows.reduce((most, row) => Math.max(most, row[column]!.length), title.length),
  );
  const line = (cells: readonly string[]) =>
    `  ${cells.map((cell, column) => cell.padStart(widths[column]!)).join('  ')}`;
  return [line(head), ...rows.flatMap((row, index) => [line(row), ...slots(timeline[index]!)])];
}

function slots({ deletes, creates, moves, deleted, created }: TransactionSummary): string[] {
  const list = (word: string, ranges: readonly Slot[], total: number) => {
    if (ranges.length === 0) return [];
    const shown = ranges.map(({ slot, gpa, size }) => `${slot} ${formatRange(gpa, size)}`);
    if (total > shown.length) shown.push(`${total - shown.length} more`);
    return [`      ${word}: ${shown.join(', ')}`];
  };
  return [...list('deleted', deleted, deletes + moves), ...list('created', created, creates + moves)];
}

function counted({ foreign, malformed, tooLong, unreadable }: Analysis['counts']): string {
  const parts = [
    [foreign, 'foreign'],
    [malformed, 'malformed'],
    [tooLong, 'too long'],
    [unreadable, 'unreadable'],
  ] as const;
  const shown = parts.filter(([count]) => count > 0).map(([count, word]) => `${count} ${word}`);
  return shown.length === 0 ? '' : ` (${shown.join(', ')})`;
}

function more(listed: number, total: number): string[] {
  return total > listed ? [`  … and ${total - listed} more (--limit lists more)`] : [];
}

function many(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? '' : 's'}`;
}

const colours = { error: '31', warning: '33', note: '2' } as const;

function coloured(severity: keyof typeof colours): string {
  const word = severity.padEnd(7);
  if (!process.stdout.isTTY || process.env.NO_COLOR) return word;
  return `\x1b[${colours[severity]}m${word}\x1b[0m`;
}
