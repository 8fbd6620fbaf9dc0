import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { commits } from './commits.js';
import { flatViews } from './flat-views.js';
import { gates } from './gates.js';
import { logs } from './logs.js';
import { lookUps } from './look-ups.js';
import { plans } from './plans.js';
import { plot } from './plot.js';
import { Report } from './report.js';
import { singleLookUps } from './single-look-ups.js';
import { slotCases } from './slot-cases.js';
import { viewer } from './viewer.js';
import { windows } from './windows.js';

/** What is measured, by name, in the order of the report. */
const groups: Readonly<Record<string, (report: Report) => void | Promise<void>>> = {
  'look-ups': lookUps,
  'single look-ups': singleLookUps,
  plans,
  commits,
  windows,
  gates,
  'flat views': flatViews,
  'slot cases': slotCases,
  logs,
  viewer,
};

const usage = `npm run bench -- [--quick] [--json] [--only TEXT] [--plots DIRECTORY]

Measures this package against what one would use instead, in the same run, on the same data, in turns. Each line says
whether it reached what it should: ratio is ours / rival, reach the largest ratio that counts.

  --quick             in less than two minutes; figures are rougher
  --json              prints {rows, skipped} on standard output and nothing else; the table goes to standard error
  --only TEXT         only groups whose name holds TEXT: ${Object.keys(groups).join(', ')}
  --plots DIRECTORY   where cost curves go, as SVG. Default test/artefacts/plots`;

/** The command. Resolves to its exit status: 0 even if something wasn't reached, which is for readers to judge. */
export async function run(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      only: { type: 'string', default: '' },
      plots: { type: 'string', default: 'test/artefacts/plots' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    console.log(usage);
    return 0;
  }
  const report = new Report(values.quick, values.json ? console.error : console.log);
  const start = performance.now();
  report.note(`${cpus()[0]?.model ?? process.arch}, ${cpus().length} CPUs, Node ${process.version}`);
  for (const [name, group] of Object.entries(groups)) {
    if (!name.includes(values.only)) continue;
    report.heading(name);
    await group(report);
  }
  mkdirSync(values.plots, { recursive: true });
  for (const curve of report.curves) {
    writeFileSync(`${values.plots}/${curve.title.replace(/[^a-z0-9]+/gi, '-').toLowerCase()}.svg`, plot(curve));
  }
  const missed = report.rows.filter(({ reached }) => !reached).length;
  const seconds = Math.round((performance.now() - start) / 1000);
  const { rows, skipped, curves } = report;
  report.note('');
  report.note(`${rows.length - missed} reached, ${missed} not, ${skipped.length} skipped, in ${seconds} s`);
  if (curves.length > 0) report.note(`${curves.length} cost curves in ${values.plots}`);
  if (values.json) console.log(JSON.stringify(report.json));
  return 0;
}
