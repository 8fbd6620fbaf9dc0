import { spawnSync } from 'node:child_process';
import { closeSync, createReadStream, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { readTraceFile } from '../../ts/trace/file.js';
import { analyze } from '../../ts/trace/index.js';
import { randomNumbers } from './layouts.js';
import type { Report } from './report.js';
import { raceAsync, type Sample } from './sampler.js';

const pattern =
  /^(?:\d+@([\d.]+):)?kvm_set_user_memory (?:AddrSpace#(\d+) )?Slot#(\d+) flags=0x([0-9a-f]+) gpa=0x([0-9a-f]+) size=0x([0-9a-f]+) ua=0x([0-9a-f]+) .*ret=(-?\d+)/;

/** Writes a log as QEMU does: slots that are shrunk and grown again, with a warning now and then. */
function writeLog(path: string, lines: number): void {
  const random = randomNumbers(7);
  const sizes = new Map<number, number>();
  const file = openSync(path, 'w');
  const hex = (value: number) => `0x${value.toString(16)}`;
  let text: string[] = [];
  for (let index = 0; index < lines; index++) {
    const slot = random(200);
    const old = sizes.get(slot);
    const size = old === undefined ? (1 + random(64)) * 0x10000 : 0;
    if (old === undefined) sizes.set(slot, size);
    else sizes.delete(slot);
    const [gpa, host] = [slot * 0x800000, 0x7f0000000000 + slot * 0x800000];
    const time = `${1700000000 + Math.floor(index / 50_000)}.${String((index * 20) % 1_000_000).padStart(6, '0')}`;
    const rest = 'guest_memfd=-1 guest_memfd_offset=0x0 ret=0';
    text.push(
      `4711@${time}:kvm_set_user_memory AddrSpace#0 Slot#${slot} flags=0x0 gpa=${hex(gpa)} size=${hex(size)} ua=${hex(host)} ${rest}`,
    );
    if (index % 1000 === 0) text.push('qemu-system-x86_64: warning: something of no interest here');
    if (text.length > 5000) {
      writeSync(file, `${text.join('\n')}\n`);
      text = [];
    }
  }
  writeSync(file, `${text.join('\n')}\n`);
  closeSync(file);
}

/** What one would write to get at the numbers: the loop that the reader is compared with. */
async function readlineLoop(path: string): Promise<number> {
  let found = 0;
  for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Number.POSITIVE_INFINITY })) {
    if (pattern.exec(line) !== null) found++;
  }
  return found;
}

/** Reading and analysing a log. */
export async function logs(report: Report): Promise<void> {
  const lines = report.budget(1_000_000, 150_000);
  const directory = mkdtempSync(join(tmpdir(), 'memslots-bench-'));
  const path = join(directory, 'qemu.log');
  try {
    writeLog(path, lines);
    const must = (found: number) => {
      if (found !== lines) throw new Error(`${found} of ${lines} lines were found`);
    };
    const samples = await raceAsync(
      {
        async reader() {
          let found = 0;
          for await (const events of readTraceFile(path).batches()) found += events.length;
          must(found);
        },
        async analysis() {
          must((await analyze(readTraceFile(path))).updates);
        },
        loop: async () => must(await readlineLoop(path)),
        grep: () => must(Number(spawnSync('grep', ['-c', 'kvm_set_user_memory', path]).stdout)),
      },
      report.budget(5, 3),
    );
    const milli = ({ median, low, high, turns }: Sample): Sample => ({
      median: median / 1e6,
      low: low / 1e6,
      high: high / 1e6,
      turns,
    });
    const what = (verb: string) => `log of ${lines.toLocaleString('en')} lines: ${verb}`;
    report.add(what('reader against a readline loop, ms'), milli(samples.reader), milli(samples.loop), 1 / 2.5);
    report.add(what('analysis against a readline loop, ms'), milli(samples.analysis), milli(samples.loop), 1.5);
    const within = () => (2000 * lines) / 1_000_000;
    report.add(what('analysis, at most 2 s a million, ms'), milli(samples.analysis), milli(samples.loop), within);
    report.note(`for scale: grep -c takes ${Math.round(samples.grep.median / 1e6)} ms`);
  } finally {
    rmSync(directory, { recursive: true });
  }
}
