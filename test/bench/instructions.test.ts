import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync } from 'node:fs';
import { describe, expect, it, type TestContext } from 'vitest';

/** Addresses that one time of `find` and `batch` looks up; see instructions.c. */
const addresses = 4096;
const folder = 'test/artefacts/instructions';

/** What valgrind's callgrind counts. The same for the same program, whatever else the machine does. */
interface Counts {
  readonly instructions: number;
  readonly branches: number;
  readonly mispredicted: number;
}

/** Skips the test where a tool is missing. */
function needs(context: TestContext, ...tools: string[]): void {
  for (const tool of tools) {
    if (spawnSync(tool, ['--version']).status !== 0) context.skip(`${tool} is not installed`);
  }
}

/** Builds the program with the core's own flags. */
function build(compiler: string): string {
  mkdirSync(folder, { recursive: true });
  const program = `${folder}/${compiler}`;
  const core = readdirSync('csrc').filter((name) => name.endsWith('.c') && name !== 'kvm.c');
  const sources = ['test/bench/instructions.c', ...core.map((name) => `csrc/${name}`)];
  execFileSync(compiler, ['-std=c11', '-O3', '-Wall', '-Wextra', '-Werror', '-o', program, ...sources]);
  return program;
}

/** What one more time of `what` among `slots` slots takes. */
function countsOf(program: string, what: 'find' | 'batch' | 'plan', slots: number): Counts {
  const [once, thrice] = [1, 3].map((times) => {
    const tool = ['--tool=callgrind', '--branch-sim=yes', '--callgrind-out-file=/dev/null'];
    const { stderr, status } = spawnSync('valgrind', [...tool, program, what, `${slots}`, `${times}`], {
      encoding: 'utf8',
    });
    expect(status).toBe(0);
    // Instructions, conditional branches, of which mispredicted, and the same of indirect ones.
    return /Collected : (.*)/.exec(stderr)![1]!.split(' ').map(Number);
  }) as [number[], number[]];
  const each = what === 'plan' ? 1 : addresses;
  const [instructions, branches, mispredicted] = thrice.map((count, index) => (count - once[index]!) / 2 / each);
  return { instructions: instructions!, branches: branches!, mispredicted: mispredicted! };
}

describe.each(['gcc', 'clang'])('the core compiled by %s', (compiler) => {
  // Bounds are a quarter above what was counted when they were set, in processor instructions.
  it.for([
    ['find', 8, 95],
    ['find', 32_764, 225],
    ['batch', 8, 65],
    ['batch', 32_764, 190],
  ] as const)(
    'looks an address up (%s) among %i slots in at most %i instructions, and branches on none of their keys',
    (row, context) => {
      needs(context, compiler, 'valgrind');
      const [what, slots, most] = row;
      const { instructions, branches, mispredicted } = countsOf(build(compiler), what, slots);
      expect(instructions).toBeLessThanOrEqual(most);
      // A step of the loop for each of five levels, and not one for each key.
      expect(branches).toBeLessThan(12);
      // Whether a slot holds the address at all is a branch for some compilers, and half of these addresses miss.
      expect(mispredicted).toBeLessThan(what === 'batch' ? 0.8 : 0.02);
    },
  );

  it('plans 16 changes in few instructions more among 32,764 slots than among 512', (context) => {
    needs(context, compiler, 'valgrind');
    const program = build(compiler);
    const [few, many] = [512, 32_764].map((slots) => countsOf(program, 'plan', slots).instructions) as [number, number];
    expect(many).toBeLessThan(33_000);
    expect(many / few).toBeLessThan(1.6);
  });
});
