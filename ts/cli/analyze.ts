import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { formatRange, formatSize } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import { PlannerEstimator } from '../replay/estimator.js';
import type { Analysis, Hole, TransactionSummary } from '../trace/analysis.js';
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
  summary: "Reads another VMM's log and says what its guests could have seen",
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
    await print(options.has('json') ? json(analysis) : report(path, analysis));
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

/** Writes pieces of text as fast as they are taken: the lists are long, and all in one would double the memory. */
async function print(pieces: Iterable<string>): Promise<void> {
  let text = '';
  for (const piece of pieces) {
    text += piece;
    if (text.length < 1 << 16) continue;
    if (!process.stdout.write(text)) await new Promise((resolve) => process.stdout.once('drain', resolve));
    text = '';
  }
  process.stdout.write(text);
}

/** The analysis as `--json` prints it, on one line. */
function* json({ timeline, holes, findings, ...rest }: Analysis): Generator<string> {
  yield JSON.stringify(rest).slice(0, -1);
  yield* jsonList('holes', holes, ({ transaction, addressSpace, gpa, size, micros, reshape, inhibited }) => {
    return { transaction, as: addressSpace, gpa, size, micros, reshape, ...(inhibited ? { inhibited } : {}) };
  });
  yield* jsonList('findings', findings, (finding) => finding);
  yield* jsonList('timeline', timeline, ({ addressSpace, deleted, created, ...summary }) => {
    return { ...summary, as: addressSpace, deleted: deleted.map(slotJson), created: created.map(slotJson) };
  });
  yield '}\n';
}

function* jsonList<T>(name: string, items: readonly T[], shape: (item: T) => object): Generator<string> {
  yield `,"${name}":[`;
  for (const [index, item] of items.entries()) yield (index === 0 ? '' : ',') + JSON.stringify(shape(item));
  yield ']';
}

function slotJson({ slot, flags, gpa, size, hostAddress }: Slot): object {
  return { slot, flags, gpa, size, hostAddress };
}

function* report(path: string, analysis: Analysis): Generator<string> {
  const { counts, vms, updates, transactions, failures, unchanged, maxSlots, engine } = analysis;
  yield `${path}: ${formats[analysis.format!]}, ${counts.lines} lines${counted(counts)}\n`;
  yield `${many(vms, 'VM')}, ${many(updates, 'slot call')} in ${many(transactions, 'transaction')}: `;
  yield `${failures} failed, ${unchanged} changed nothing; at most ${many(maxSlots, 'slot')} in use\n`;
  yield `${formatSize(analysis.bytesTornDown)} torn down, of which ${formatSize(analysis.bytesRemapped)} came back as the same memory; ${many(analysis.totalHoles, 'hole')}\n`;
  if (analysis.snapshots > 0) yield `${many(analysis.snapshots, 'snapshot')}\n`;
  if (analysis.timeline.length > 0) {
    yield '\nTransactions\n';
    yield* timeline(analysis);
    yield more(analysis.timeline.length, transactions);
  }
  yield analysis.findings.length === 0 ? '\nNo findings\n' : '\nFindings, worst first\n';
  for (const { severity, text } of analysis.findings) yield `  ${coloured(severity)} ${text}\n`;
  yield more(analysis.findings.length, analysis.totalFindings);
  if (engine === null) return;
  const { policy, ioctls, windows, bytesTornDown } = engine;
  yield `\nThis engine (${policy}): ${many(ioctls, 'ioctl')}, ${many(windows, 'inhibit window')}, ${formatSize(bytesTornDown)} torn down\n`;
}

const columns = [
  ['#', 6],
  ['at', 10],
  ['AS', 3],
  ['deletes', 7],
  ['creates', 7],
  ['moves', 5],
  ['flags', 5],
  ['unchanged', 9],
  ['torn down', 10],
  ['holes', 5],
  ['failed', 6],
  ['ids reused', 10],
  ['slots', 5],
] as const;

function* timeline({ timeline, start, vms, holes }: Analysis): Generator<string> {
  const holesOf = new Map<number, Hole[]>();
  for (const hole of holes) {
    const known = holesOf.get(hole.transaction);
    if (known === undefined) holesOf.set(hole.transaction, [hole]);
    else known.push(hole);
  }
  const line = (cells: readonly string[]) => {
    return `${cells.map((cell, index) => cell.padStart(columns[index]![1])).join('  ')}\n`;
  };
  yield line(columns.map(([title]) => title));
  for (const row of timeline) {
    yield line([
      String(row.transaction),
      row.time === null || start === null ? `line ${row.line}` : formatMicros(Math.max(row.time - start, 0)),
      vms > 1 ? `${row.vm}, ${row.addressSpace}` : String(row.addressSpace),
      ...[row.deletes, row.creates, row.moves, row.flagChanges, row.unchanged].map(String),
      formatSize(row.bytesTornDown),
      ...[row.holes, row.failures, row.idsReused, row.slots].map(String),
    ]);
    yield* slots(row);
    yield* unmapped(row, holesOf.get(row.transaction) ?? []);
  }
}

function slots({ deletes, creates, moves, deleted, created }: TransactionSummary): string[] {
  const list = (word: string, ranges: readonly Slot[], total: number) => {
    if (ranges.length === 0) return [];
    const shown = ranges.map(({ slot, gpa, size }) => `${slot} ${formatRange(gpa, size)}`);
    if (total > shown.length) shown.push(`${total - shown.length} more`);
    return [`        ${word}: ${shown.join(', ')}\n`];
  };
  return [...list('deleted', deleted, deletes + moves), ...list('created', created, creates + moves)];
}

function* unmapped({ holes }: TransactionSummary, listed: readonly Hole[]): Generator<string> {
  if (listed.length === 0) return;
  const shown = [...listed]
    .sort((a, b) => a.gpa - b.gpa)
    .map(({ gpa, size, micros, reshape }) => {
      const long = micros === null ? '' : ` for ${formatMicros(micros)}`;
      return `${formatRange(gpa, size)}${long}${reshape ? ', same memory' : ''}`;
    });
  if (holes > shown.length) shown.push(`${holes - shown.length} more`);
  yield `        unmapped: ${shown.join('; ')}\n`;
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

function more(listed: number, total: number): string {
  return total > listed ? `  … and ${total - listed} more (--limit lists more)\n` : '';
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
