import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { backends, needsKvm } from '../kvm/backends.js';
import { torture } from './torture.js';

const command = fileURLToPath(new URL('run.mjs', import.meta.url));

describe.each(backends)('a tortured machine on %s', (backend) => {
  it.for([2, 8])('with %i vCPUs shows no guest a hole, loses no kick, and keeps its tables', async (vcpus, context) => {
    needsKvm(context, backend);
    const report = await torture({ backend, seconds: 4, vcpus, seed: 11 }, undefined, 20);
    expect(report.problems).toEqual([]);
    expect(report).toMatchObject({ spuriousExits: 0, wrongValues: 0, lostKicks: 0, timeouts: 0 });
    expect(report.watchedKicks).toBeGreaterThan(0);
  });

  it('harms its guests if updates are not atomic (the control)', async (context) => {
    needsKvm(context, backend);
    const report = await torture({ backend, seconds: 20, vcpus: 2, seed: 11, control: 'naive' });
    expect(report.problems.join()).toMatch(/wrong values, \d+ spurious exits/);
    expect(report.wrongValues + report.spuriousExits + report.internalErrors).toBeGreaterThan(0);
  });

  it('is found to lose kicks if some are dropped (the control)', async (context) => {
    needsKvm(context, backend);
    const report = await torture({ backend, seconds: 20, vcpus: 2, seed: 11, control: 'deaf' });
    expect(report.problems.join()).toMatch(/a kick of vCPU \d+ was lost/);
    expect(report.lostKicks).toBeGreaterThan(0);
  });
});

describe('the torture command', () => {
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [command, 'torture', ...args], { encoding: 'utf8', timeout: 60_000 });

  it('takes too little for a failure', async () => {
    const report = await torture({ backend: 'simulated', seconds: 1, vcpus: 1, seed: 1 }, undefined, 1e9);
    expect(report.problems.join()).toMatch(/^\d+ overlapping commits are too few: there must be 1000000000$/);
  });

  it('prints JSON alone with --json, and ends by itself', () => {
    const { stdout, status } = run('--seconds', '1', '--vcpus', '1', '--backend', 'simulated', '--json');
    const report = JSON.parse(stdout);
    for (const name of ['commits', 'inhibits', 'spuriousExits', 'wrongValues', 'lostKicks', 'timeouts']) {
      expect(report[name], name).toBeTypeOf('number');
    }
    expect(report.maxWindowMicros).toBeGreaterThan(0);
    expect(report.vcpuShare).toBeGreaterThan(0);
    expect(status).toBe(report.problems.length === 0 ? 0 : 1);
  });

  it('refuses what it does not know', () => {
    expect(run('--backend', 'xen').status).toBe(2);
    expect(run('--vcpus', '0').status).toBe(2);
  });
});
