import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { emptyFolder } from '../package/pack.js';

const folder = emptyFolder('coverage');
afterAll(() => folder.remove());
let report: ReturnType<typeof spawnSync>;

const sources = readFileSync('ts/core/checks.ts', 'utf8').split('\n');
const source = (path: string) => JSON.stringify(pathToFileURL(resolve('dist', path)).href);

beforeAll(() => {
  const { NODE_V8_COVERAGE: _, ...env } = process.env;
  // One half of formatSize in this thread, the other in a thread of its own.
  const program = `
    import { Worker } from 'node:worker_threads';
    import { formatSize } from ${source('core/checks.js')};
    formatSize(1);
    new Worker('import(${source('core/checks.js')}).then(({ formatSize }) => formatSize(4096))', { eval: true });`;
  const { status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    encoding: 'utf8',
    env: { ...env, NODE_V8_COVERAGE: join(folder.path, 'v8') },
  });
  expect([status, stderr]).toEqual([0, '']);
  const records = [
    ['gate.c', ['5,3', '8,0', '9,0', '20,0', '21,1', '22,0']],
    ['kvm.c', ['1,0']],
  ] as const;
  const lcov = records.map(
    ([name, lines]) => `SF:${resolve('csrc', name)}\n${lines.map((line) => `DA:${line}\n`).join('')}end_of_record\n`,
  );
  writeFileSync(join(folder.path, 'c.lcov'), lcov.join(''));
  report = spawnSync(process.execPath, ['test/coverage/report.mjs', folder.path], { encoding: 'utf8', env });
});

it('names the lines of C that no run counted, and the core apart from the system calls', () => {
  expect(report.stdout).toMatch(/^C core +33\.3 % +2 of 6 lines {2}below 95 %\n +33\.3 % {2}csrc\/gate\.c: 8-20, 22$/m);
  expect(report.stdout).toMatch(/^csrc\/kvm\.c +0\.0 % +0 of 1 lines$/m);
});

it('names the lines of TypeScript that ran in no thread, and none that ran in one', () => {
  const [, gaps] = /ts\/core\/checks\.ts: (.*)$/m.exec(report.stdout as string)!;
  const missed = (text: string) => {
    const line = sources.findIndex((each) => each.includes(text)) + 1;
    return gaps!.split(', ').some((gap) => {
      const [first, last = first] = gap.split('-').map(Number);
      return line >= first! && line <= last!;
    });
  };
  expect(missed('const start = BigInt(gpa)')).toBe(true);
  expect(missed('let unit = 0')).toBe(false);
  // Only the other thread came by here.
  expect(missed('value /= 1024')).toBe(false);
});

it('counts files that were never loaded, and fails where a part that must be covered is not', () => {
  expect(report.stdout).toMatch(/^ts\/trace +0\.0 % +0 of \d{3,} lines {2}below 95 %$/m);
  expect(report.status).toBe(1);
});
