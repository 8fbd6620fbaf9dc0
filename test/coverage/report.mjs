// Lines that ran, of the TypeScript and the C: node test/coverage/report.mjs FOLDER
// FOLDER/v8 holds what each process and each thread wrote (NODE_V8_COVERAGE), FOLDER/c.lcov what llvm-cov made of the
// native library's counters. Ends with status 1 where a part that must be covered isn't.
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { convert } from 'ast-v8-to-istanbul';
import { parseAstAsync } from 'vite';

const root = fileURLToPath(new URL('../..', import.meta.url));
const [folder = 'coverage'] = process.argv.slice(2);
const needed = 95;
/** Groups of files, the parts that must be covered first. The page runs in browsers, which tell nothing here. */
const groups = [
  { name: 'C core', needed, holds: (file) => /^csrc\/(?!kvm)/.test(file) },
  { name: 'csrc/kvm.c', holds: (file) => file === 'csrc/kvm.c' },
  ...['memory', 'kvm', 'trace'].map((part) => ({
    name: `ts/${part}`,
    needed,
    holds: (file) => file.startsWith(`ts/${part}/`),
  })),
  ...['core', 'replay', 'testing', 'cli'].map((part) => ({
    name: `ts/${part}`,
    holds: (file) => file.startsWith(`ts/${part}/`) || file === `ts/${part}.ts`,
  })),
];

/** Whether `functions` are of this text, and not of one that was transformed on its way or built since. */
const areOf = (text, functions) =>
  functions.every(({ ranges }) => ranges.every(({ endOffset }) => endOffset <= text.length)) &&
  functions[0]?.ranges[0]?.endOffset === text.length;

/**
 * Adds one script's functions to `ran`: a byte for each of its characters, 1 where one run has come by. V8 gives nested
 * ranges, of which the innermost counts.
 */
function add(ran, functions) {
  const ranges = functions
    .flatMap((each) => each.ranges)
    .sort((a, b) => b.endOffset - b.startOffset - (a.endOffset - a.startOffset));
  const now = new Uint8Array(ran.length);
  for (const { startOffset, endOffset, count } of ranges) now.fill(count > 0 ? 1 : 0, startOffset, endOffset);
  for (let at = 0; at < ran.length; at++) ran[at] |= now[at];
}

/** What V8 would have said, had everything run in one thread. */
function inOneThread(ran) {
  const ranges = [];
  for (let start = 0; start < ran.length; ) {
    const change = ran.indexOf(1 - ran[start], start);
    const end = change < 0 ? ran.length : change;
    ranges.push({ startOffset: start, endOffset: end, count: ran[start] });
    start = end;
  }
  return [{ functionName: '', isBlockCoverage: true, ranges }];
}

/** For each TypeScript file, its lines with a statement: whether one ran. */
async function typescriptLines() {
  const scripts = new Map();
  for (const name of readdirSync(join(root, 'dist'), { recursive: true })) {
    const code = name.endsWith('.js') && statSync(join(root, `ts/${name.slice(0, -3)}.ts`), { throwIfNoEntry: false });
    if (!code) continue;
    const path = join(root, 'dist', name);
    const text = readFileSync(path, 'utf8');
    scripts.set(pathToFileURL(path).href, { path, text, ran: new Uint8Array(text.length) });
  }
  for (const name of readdirSync(join(folder, 'v8'))) {
    const { result } = JSON.parse(readFileSync(join(folder, 'v8', name), 'utf8'));
    for (const { url, functions } of result) {
      const script = scripts.get(url);
      if (script === undefined) continue;
      if (!areOf(script.text, functions)) throw new Error(`${name} tells of another ${script.path} than is there now`);
      add(script.ran, functions);
    }
  }
  const files = new Map();
  for (const [url, { path, text, ran }] of scripts) {
    const map = await convert({
      ast: parseAstAsync(text),
      code: text,
      coverage: { scriptId: '0', url, functions: inOneThread(ran) },
      sourceMap: JSON.parse(readFileSync(`${path}.map`, 'utf8')),
    });
    for (const [source, { statementMap, s }] of Object.entries(map)) {
      const lines = new Map();
      for (const [id, { start }] of Object.entries(statementMap))
        lines.set(start.line, lines.get(start.line) === true || s[id] > 0);
      files.set(resolve(source).slice(root.length), lines);
    }
  }
  return files;
}

/** The same for C. */
function nativeLines() {
  const files = new Map();
  for (const record of readFileSync(join(folder, 'c.lcov'), 'utf8').split('end_of_record')) {
    const source = record.match(/^SF:(.*)$/m);
    if (source === null) continue;
    const lines = [...record.matchAll(/^DA:(\d+),(\d+)/gm)].map(([, line, count]) => [Number(line), count !== '0']);
    files.set(resolve(source[1]).slice(root.length), new Map(lines));
  }
  return files;
}

/** Lines that didn't run, as "3, 7-9": those with no code between them are taken together. */
function gaps(lines) {
  const runs = [];
  let open = false;
  for (const [line, ran] of [...lines].sort(([a], [b]) => a - b)) {
    if (ran) open = false;
    else if (open) runs.at(-1)[1] = line;
    else open = runs.push([line, line]) > 0;
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(', ');
}

const percent = (covered, all) => (all === 0 ? 100 : (100 * covered) / all);
const files = [...nativeLines(), ...(await typescriptLines())].map(([file, lines]) => ({
  file,
  lines,
  all: lines.size,
  covered: [...lines.values()].filter(Boolean).length,
}));

let failed = false;
for (const group of groups) {
  const inside = files.filter(({ file }) => group.holds(file));
  const all = inside.reduce((sum, file) => sum + file.all, 0);
  const covered = inside.reduce((sum, file) => sum + file.covered, 0);
  const share = percent(covered, all);
  const missed = group.needed !== undefined && (all === 0 || share < group.needed);
  failed ||= missed;
  const lines = `${covered} of ${all} lines`.padStart(18);
  const verdict = missed ? `  below ${group.needed} %` : '';
  console.log(`${group.name.padEnd(12)}${share.toFixed(1).padStart(6)} %  ${lines}${verdict}`);
  for (const each of inside.sort((a, b) => percent(a.covered, a.all) - percent(b.covered, b.all)))
    if (each.covered < each.all)
      console.log(`  ${percent(each.covered, each.all).toFixed(1).padStart(5)} %  ${each.file}: ${gaps(each.lines)}`);
}
process.exitCode = failed ? 1 : 0;
