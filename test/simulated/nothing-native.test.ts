import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { describe, expect, test } from 'vitest';

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, '../..');
const forbid = join(here, 'forbid-native.cjs');

/** Node with these arguments, and nothing on its PATH. */
function node(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, args, { cwd: root, env: { PATH: '' }, encoding: 'utf8' });
}

describe('with koffi, native libraries and other programs forbidden', () => {
  test('the native core can not be loaded: the ban works', (context) => {
    const load = `import('./dist/core/native.js').then((native) => native.loadNativeLibrary())`;
    const free = node('-e', `${load}.then(() => console.log('loaded'), (error) => console.log(error.message))`).stdout;
    if (free !== 'loaded\n') context.skip(`nothing to ban: ${free}`);
    const banned = node('--require', forbid, '-e', `${load}.catch((error) => console.log(error.message))`);
    expect(banned.stdout).toContain("the package 'koffi', which real KVM needs, can't be loaded");
    const compile = `require('node:child_process').execFileSync('cc')`;
    expect(node('--require', forbid, '-e', compile).stderr).toContain('forbidden: another program');
    expect(node('-e', compile).stderr).toContain('ENOENT');
  });

  test('the built test kit works', () => {
    const use = `import('kvm-memslots/testing').then(({ simulatedKvm, assertLayout }) => {
      const { kernel, backend } = simulatedKvm();
      const host = backend.allocate(0x1000).hostAddress;
      kernel.setUserMemoryRegion({ slot: 0, flags: 0, gpa: 0, size: 0x1000, host });
      assertLayout(kernel.layout(), [{ gpa: 0, size: 0x1000 }]);
      console.log('it works');
    })`;
    const { stdout, stderr } = node('--require', forbid, '-e', use);
    expect([stdout, stderr]).toEqual(['it works\n', '']);
  });

  test('the simulated KVM and its vCPUs can be bundled for a browser', async () => {
    const { metafile } = await build({
      absWorkingDir: root,
      entryPoints: ['ts/kvm/simulated.ts', 'ts/kvm/simulated-vcpu.ts'],
      bundle: true,
      format: 'esm',
      platform: 'browser',
      outdir: 'nowhere',
      write: false,
      metafile: true,
      logLevel: 'silent',
    });
    const imports = Object.values(metafile.inputs).flatMap((input) => input.imports);
    expect(imports.length).toBeGreaterThan(10);
    expect(imports.filter(({ external, path }) => external || /koffi|native/.test(path))).toEqual([]);
  });

  test('all tests that need no real KVM pass', () => {
    const vitest = join(dirname(createRequire(import.meta.url).resolve('vitest/package.json')), 'vitest.mjs');
    const config = join(here, 'forbid-native.config.ts');
    const { status, stdout, stderr } = node(vitest, 'run', '--config', config, '--reporter=json');
    const report = JSON.parse(stdout.slice(stdout.indexOf('{'))) as {
      testResults: { assertionResults: { status: string; fullName: string }[] }[];
    };
    const results = report.testResults.flatMap(({ assertionResults }) => assertionResults);
    const named = (wanted: (status: string) => boolean): string[] =>
      results.filter(({ status }) => wanted(status)).map(({ fullName }) => fullName);
    expect(named((status) => status === 'failed')).toEqual([]);
    expect([status, stderr]).toEqual([0, '']);
    expect(named((status) => status === 'passed').length).toBeGreaterThan(60);
    // Only what asks for the real one.
    for (const name of named((status) => status !== 'passed')) expect(name).toMatch(/kvm/);
  });
});
