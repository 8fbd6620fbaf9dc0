import { spawnSync } from 'node:child_process';
import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type Check, coreChecks, deviceAdvice, kvmChecks } from '../../ts/cli/doctor.js';
import type { Core } from '../../ts/core/core.js';
import { nativePlatform } from '../../ts/core/native.js';
import { compareBuilds } from '../../ts/testing/compare-builds.js';
import { needsKvm } from '../kvm/backends.js';

const linux = { platform: 'linux', processors: 'flags\t\t: fpu vme' };

describe('the comparison of the two builds', () => {
  it('finds them equal', () => {
    expect(compareBuilds(50)).toMatchObject({ transactions: 50, difference: undefined });
  });

  it.each(['plan', 'find', 'insert', 'overlap'] as const)('notices one wrong answer of %s', (name) => {
    let calls = 0;
    const { difference } = compareBuilds(100, ({ wasm }) => {
      const wrong = (...parameters: [number, number]) =>
        (wasm[name] as (...parameters: number[]) => number)(...parameters) - (++calls === 20 ? 1 : 0);
      return { ...wasm, [name]: wrong } as Core;
    });
    expect(difference).toMatch(/^transaction \d+: native says .*, WASM says /);
  });
});

describe('memslots doctor', () => {
  it('prints only JSON with --json: what it found, advice for every lack, a status that says whether KVM can be used', () => {
    const { stdout, stderr, status } = spawnSync(process.execPath, ['dist/cli.js', 'doctor', '--json'], {
      encoding: 'utf8',
    });
    const { platform, backend, checks } = JSON.parse(stdout) as { platform: string; backend: string; checks: Check[] };
    expect([stderr, platform]).toEqual(['', nativePlatform()]);
    expect(checks.length).toBeGreaterThan(4);
    for (const { status: each, advice } of checks) expect(advice === undefined).toBe(each === 'ok');
    const usable = checks.every((check) => check.status !== 'problem');
    expect([status, backend]).toEqual(usable ? [0, 'kvm'] : [1, 'simulated']);
  });

  it.each([
    ['that is not there', '/nonexistent/slots.so', 'there is no native library for'],
    ['that is none', resolve('package.json'), "the native library can't be loaded"],
  ])('tells of a native library %s, and that only the simulated KVM is left', (_, library, found) => {
    const { stdout, status } = spawnSync(process.execPath, ['dist/cli.js', 'doctor', '--json'], {
      encoding: 'utf8',
      env: { ...process.env, MEMSLOTS_LIBRARY: library },
    });
    const { backend, checks } = JSON.parse(stdout) as { backend: string; checks: Check[] };
    expect([status, backend]).toEqual([1, 'simulated']);
    expect(checks).toContainEqual({
      name: 'native core',
      status: 'problem',
      found: expect.stringContaining(found),
      advice: expect.stringMatching(/install the package again|build it from the sources/),
    });
    expect(checks).toContainEqual(expect.objectContaining({ name: 'WASM core', status: 'ok' }));
  });

  it.each([
    ['macOS', 'darwin', `Object.defineProperty(process, 'platform', { value: 'darwin' });`],
    [
      'Linux with musl',
      'linux',
      `const { readFileSync } = fs;
       fs.readFileSync = (path, ...rest) => (path === '/proc/self/maps' ? '7f00-7f01 /lib/ld-musl-x86_64.so.1' : readFileSync(path, ...rest));`,
    ],
  ])('on %s says that the WASM core and the simulated KVM are what there is', (_, platform, pretend) => {
    const host = `import fs from 'node:fs'; import { syncBuiltinESMExports } from 'node:module';
      ${pretend} syncBuiltinESMExports();`;
    const { MEMSLOTS_LIBRARY: _named, ...env } = process.env;
    const node = (...args: string[]) =>
      spawnSync(process.execPath, ['--import', `data:text/javascript,${encodeURIComponent(host)}`, ...args], {
        encoding: 'utf8',
        env,
      });
    const { stdout, status } = node('dist/cli.js', 'doctor', '--json');
    const report = JSON.parse(stdout) as { platform: string; backend: string; checks: Check[] };
    const name = `${platform}-${process.arch}${platform === 'linux' ? '-musl' : ''}`;
    expect([status, report.backend, report.platform]).toEqual([1, 'simulated', name]);
    const [, wasm, native] = report.checks;
    expect([wasm!.status, native!.status]).toEqual(['ok', 'problem']);
    expect(native!.found).toContain(`there is no native library for ${name} here`);
    expect(native!.advice).toBe(
      'on Linux, build it from the sources with make build; elsewhere, use the simulated KVM',
    );
    const demo = node('dist/cli.js', 'demo', '--seconds', '2', '--json');
    expect(JSON.parse(demo.stdout)).toMatchObject({ backend: 'simulated', why: expect.stringContaining(name) });
  });

  it('tells what KVM can do where it can be used', (context) => {
    needsKvm(context, 'kvm');
    const checks = kvmChecks();
    expect(checks.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['memory slots', 'dirty ring', 'guest_memfd']),
    );
    expect(checks.filter(({ status }) => status === 'problem')).toEqual([]);
  });

  it('tells of a device that is not there, and of one that is something else', () => {
    expect(kvmChecks('/nonexistent/kvm')).toEqual([
      expect.objectContaining({ status: 'problem', found: expect.stringContaining('there is no /nonexistent/kvm') }),
    ]);
    expect(kvmChecks('/dev/null')).toEqual([
      expect.objectContaining({ status: 'problem', found: expect.stringContaining("KVM's API version is") }),
    ]);
  });

  it('tells of builds that differ', () => {
    const checks = coreChecks(() => ({ transactions: 3, calls: 24, difference: 'transaction 3: …' }));
    expect(checks.at(-1)).toMatchObject({ name: 'self-test', status: 'problem' });
    expect(coreChecks().map(({ status }) => status)).toEqual(['ok', 'ok', 'ok']);
  });

  it.each([
    ['EACCES', linux, 'usermod -aG kvm'],
    ['EPERM', linux, '--device /dev/kvm'],
    ['ENOENT', { ...linux, processors: 'flags\t\t: fpu vmx sse' }, 'modprobe kvm_intel'],
    ['ENOENT', { ...linux, processors: 'flags\t\t: fpu svm sse' }, 'modprobe kvm_amd'],
    ['ENOENT', linux, 'nested virtualisation'],
    ['ENODEV', linux, 'see what the system says'],
    ['ENOENT', { ...linux, platform: 'darwin' }, 'use the simulated one'],
  ])('advises on %s of /dev/kvm: %j', (code, facts, advice) => {
    expect(deviceAdvice(code, facts)).toContain(advice);
  });
});
