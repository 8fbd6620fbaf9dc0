import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { expect, it, type TestContext } from 'vitest';

/** What git lists, or a skip where this is no checkout. */
function listed(context: TestContext, ...options: string[]): string[] {
  const { status, stdout } = spawnSync('git', ['ls-files', ...options], { encoding: 'utf8' });
  if (status !== 0) context.skip('this is no git checkout');
  return stdout.split('\n').filter((path) => path !== '');
}

/** What is made, and so isn't kept. */
const isMade = (path: string) => /^test\/artefacts\/|^wasm-build\/.*\.(so|wasm)$|\.new$/.test(path);

it.each(['Makefile', '.ci/run', 'package.json', 'vitest.config.ts', 'biome.json'])(
  'every source file that %s names is kept in the repository',
  (file, context) => {
    const kept = new Set(listed(context as unknown as TestContext));
    const text = readFileSync(file, 'utf8');
    const named = [...text.matchAll(/(?<![\w./-])(?:csrc|docs|test|ts|wasm-build)\/[\w./-]+\.\w+\b/g)].map(
      ([path]) => path,
    );
    expect(named.filter((path) => !isMade(path) && !kept.has(path))).toEqual([]);
  },
);

it('no source file is kept out of the repository by a rule that was meant for something else', (context) => {
  const ignored = listed(context, '--others', '--ignored', '--exclude-standard', 'csrc', 'docs', 'test', 'ts');
  expect(ignored.filter((path) => !isMade(path))).toEqual([]);
});
