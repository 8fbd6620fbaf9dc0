import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build as esbuild } from 'esbuild';
import { build as vite } from 'vite';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { codeBlocks, emptyFolder, install, needsPackage, pack, whyNotPacked } from './pack.js';

const folder = emptyFolder('package');
let packed: ReturnType<typeof pack>;

beforeAll(() => {
  if (whyNotPacked() !== undefined) return;
  packed = pack(folder.path);
  install(folder.path, packed.tarball);
});
afterAll(() => folder.remove());

/** Node in the user's folder, where none of the project's packages can be found. */
function node(...args: string[]) {
  return spawnSync(process.execPath, args, { cwd: folder.path, encoding: 'utf8', timeout: 60_000 });
}

describe('the package', () => {
  it('is below 1 MB and has both native libraries, both WASM modules, the recording and the manual', (context) => {
    needsPackage(context);
    expect(packed.bytes).toBeLessThan(1e6);
    expect(packed.files).toEqual(
      expect.arrayContaining([
        'wasm-build/slots-linux-x64.so',
        'wasm-build/slots-linux-arm64.so',
        'wasm-build/slots.wasm',
        'wasm-build/slots-shared.wasm',
        'test/data/qemu/churn-pc-qemu10.0.log',
        'docs/memslots.1',
        'README.md',
        'LICENSE',
        'CHANGELOG.md',
        'dist/cli.js',
      ]),
    );
    expect(packed.files.filter((path) => /^(ts|csrc|node_modules)\/|\.test\./.test(path))).toEqual([]);
  });

  it.each(['x64', 'arm64'])('has a library for %s that needs the C library alone, and an old one will do', (arch) => {
    const bytes = readFileSync(`wasm-build/slots-linux-${arch}.so`).toString('latin1');
    expect([...bytes.matchAll(/[\w+-]+\.so\.\d+/g)].map(([name]) => name)).toEqual(['libc.so.6']);
    const versions = [...bytes.matchAll(/GLIBC_2\.(\d+)/g)].map(([, minor]) => Number(minor));
    expect(versions.length).toBeGreaterThan(0);
    // Node 20 itself asks for 2.28.
    expect(Math.max(...versions)).toBeLessThan(28);
  });

  it('is not made without the cross compiler: the message names the package to install', () => {
    const other = process.arch === 'arm64' ? 'x64' : 'arm64';
    const target = `wasm-build/slots-linux-${other}.so`;
    // -W: as if a header were new, so that the library has to be built again.
    const { status, stderr } = spawnSync('make', [`CROSS_linux-${other}=no-such-gcc`, '-W', 'csrc/slots.h', target], {
      encoding: 'utf8',
    });
    expect(status).toBe(2);
    expect(stderr).toMatch(/needs no-such-gcc, which is missing: install Debian's gcc-(aarch64|x86-64)-linux-gnu/);
  });

  it('runs the examples of the README', (context) => {
    needsPackage(context);
    const [example, ...others] = codeBlocks('README.md', 'js');
    expect([typeof example, others]).toEqual(['string', []]);
    const { stdout, stderr } = node('--input-type=module', '-e', example!);
    expect(stderr).toBe('');
    expect(stdout).toMatch(/(kvm|simulated).*gpa: 917504/s);
  });

  it('runs the demo on its own recording', (context) => {
    needsPackage(context);
    const args = ['--no-install', 'memslots', 'demo', '--backend', 'simulated', '--seconds', '2', '--json'];
    const stdout = execFileSync('npx', args, { cwd: folder.path, encoding: 'utf8', timeout: 60_000 });
    const { backend, modes } = JSON.parse(stdout) as { backend: string; modes: { spuriousExits: number }[] };
    expect([backend, modes[1]!.spuriousExits]).toEqual(['simulated', 0]);
    expect(modes[0]!.spuriousExits).toBeGreaterThan(0);
  });

  it('gives the simulated KVM where koffi was left out, and says what real KVM lacks', (context) => {
    needsPackage(context);
    const use = `
      import { Machine } from 'kvm-memslots';
      const simulated = await Machine.create();
      console.log(simulated.backend, simulated.why);
      await simulated.close();
      await Machine.create({ backend: 'kvm' }).catch((error) => console.log(error.code, error.message));`;
    writeFileSync(join(folder.path, 'no-koffi.cjs'), noKoffi);
    const { stdout } = node('--require', './no-koffi.cjs', '--input-type=module', '-e', use);
    const why = "the package 'koffi', which real KVM needs, can't be loaded";
    expect(stdout).toContain(`simulated ${why}`);
    expect(stdout).toContain(`UNSUPPORTED ${why}`);
  });

  it('passes publint and are-the-types-wrong', (context) => {
    needsPackage(context);
    const tool = (name: string, ...args: string[]) =>
      spawnSync(`node_modules/.bin/${name}`, [...args, packed.tarball], { encoding: 'utf8' });
    const lint = tool('publint', 'run', '--strict');
    expect([lint.status, lint.stdout]).toEqual([0, expect.stringContaining('All good!')]);
    const types = tool('attw', '--profile', 'esm-only', '--format', 'json');
    expect(types.status, types.stdout).toBe(0);
  });
});

const noKoffi = `
const module_ = require('node:module');
const resolve = module_._resolveFilename;
module_._resolveFilename = function (request, ...rest) {
  if (request === 'koffi') throw new Error('it was left out');
  return resolve.call(this, request, ...rest);
};
`;

const page = `
import { AddressSpace, MemoryMap, MemoryRegion } from 'kvm-memslots';
import { readTrace } from 'kvm-memslots/trace';

export async function show(log) {
  const map = new MemoryMap();
  const system = MemoryRegion.container(map, 'system', 2n ** 64n);
  const memory = new AddressSpace(map, 'memory', system);
  const ram = MemoryRegion.ram(map, 'ram', 0x100000);
  map.transaction(() => {
    system.add(ram, 0);
    system.add(MemoryRegion.mmio(map, 'vga', 0x20000), 0xa0000, { priority: 1 });
  });
  let events = 0;
  for await (const event of readTrace(new Response(log).body)) if (event.kind === 'slot') events++;
  return [memory.view.ranges.map(({ gpa, size }) => [gpa, size]), events];
}
`;

/** Runs a bundle of {@link page} that was written to `name` in the user's folder; the result of its \`show\`. */
async function runPage(name: string): Promise<unknown> {
  const bundle = (await import(pathToFileURL(join(folder.path, name)).href)) as {
    show(log: string): Promise<unknown>;
  };
  return bundle.show('kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f0000000000 ret=0\n');
}

const shown = [
  [
    [0, 0xa0000],
    [0xa0000, 0x20000],
    [0xc0000, 0x40000],
  ],
  1,
];

describe("a browser's bundle of the package", () => {
  it('is made by esbuild, has nothing of Node, and works', async (context) => {
    needsPackage(context);
    writeFileSync(join(folder.path, 'page.js'), page);
    const { metafile } = await esbuild({
      absWorkingDir: folder.path,
      entryPoints: ['page.js'],
      outfile: 'page-esbuild.mjs',
      bundle: true,
      format: 'esm',
      platform: 'browser',
      metafile: true,
      logLevel: 'silent',
    });
    const inputs = Object.keys(metafile.inputs);
    expect(inputs).toContain('node_modules/kvm-memslots/dist/browser.js');
    expect(inputs.filter((path) => /native|node\.js|linux|koffi/.test(path))).toEqual([]);
    expect(await runPage('page-esbuild.mjs')).toEqual(shown);
  });

  it('is made by vite, and works', async (context) => {
    needsPackage(context);
    writeFileSync(join(folder.path, 'page.js'), page);
    await vite({
      root: folder.path,
      configFile: false,
      logLevel: 'silent',
      build: {
        outDir: 'vite',
        lib: { entry: 'page.js', formats: ['es'], fileName: () => 'page.mjs' },
        minify: false,
      },
    });
    const text = readFileSync(join(folder.path, 'vite/page.mjs'), 'utf8');
    expect(text).not.toMatch(/from ["'](node:|koffi)/);
    expect(await runPage('vite/page.mjs')).toEqual(shown);
  });
});
