import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { kvmMissing } from './kvm-real.js';

describe('npm run conformance:kvm', () => {
  const run = (...args: string[]) => {
    const script = fileURLToPath(new URL('kvm-run.mjs', import.meta.url));
    return spawnSync(process.execPath, [script, ...args], { encoding: 'utf8' });
  };

  test('ends with its figures as JSON, and with --json says nothing else', (context) => {
    const missing = kvmMissing();
    if (missing !== undefined) context.skip(missing);
    const { status, stdout, stderr } = run('--calls', '300', '--seed', '9', '--json');
    expect([status, stderr]).toEqual([0, '']);
    expect(JSON.parse(stdout)).toEqual({ calls: 300, seed: 9, mismatches: 0, backend: 'kvm' });
  });

  test('refuses what it does not know', () => {
    const { status, stdout, stderr } = run('--calls', 'many');
    expect([status, stdout]).toEqual([2, '']);
    expect(stderr).toBe("--calls takes a whole number, not 'many'\n");
    expect(run('--seeds', '1')).toMatchObject({ status: 2, stdout: '' });
  });
});
