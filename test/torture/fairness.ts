import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { Machine } from '../../ts/kvm/machine.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { placeWatchGuest, readWatchCounters, watchBlockBytes } from '../../ts/replay/watch-guest.js';
import { processorShare, processorTime } from './processor-time.js';

const usage = `npm run fairness -- [--seconds N] [--vcpus N,N,…] [--backend kvm|simulated] [--json]

Commits back to back, each with an inhibit window, for N seconds (default 5) under each of three rules: none; waiting
before each window for everybody who was kept out by the one before; and the rule by age. Reports, for 1, 2 and 8 vCPUs
or those asked for, the longest time and the most commits in a row without progress of some guest, entries into KVM_RUN of the least and the most
served vCPU, the share of processor time that vCPUs had, and commits a second.`;

const rules = { none: Infinity, all: 0, age: 30 } as const;
const mebibyte = 0x100000;
const ramAddress = 0x10000000;
const codeAddress = 0x70000000;

/** One line of the table. */
interface Figures {
  readonly rule: keyof typeof rules;
  readonly vcpus: number;
  readonly starvationMillis: number;
  /** Most commits in a row without progress of some guest: a time with few in it is something else's doing. */
  readonly starvationCommits: number;
  readonly entriesLeast: number;
  readonly entriesMost: number;
  /** Of what all vCPUs could have had on this machine's processors, from 0 to 1. */
  readonly vcpuShare: number;
  readonly commitsPerSecond: number;
}

async function measure(
  backend: 'kvm' | 'simulated',
  rule: keyof typeof rules,
  vcpus: number,
  seconds: number,
): Promise<Figures> {
  const machine = await Machine.create({ backend, policy: 'exact', inhibitor: { fairnessAge: rules[rule] } });
  try {
    const code = machine.allocate(vcpus * watchBlockBytes);
    const ram = MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory: machine.allocate(2 * mebibyte) });
    machine.transaction(() => {
      machine.system.add(MemoryRegion.ram(machine.map, 'code', code.size, { memory: code }), codeAddress);
      machine.system.add(ram, ramAddress);
    });
    for (let index = 0; index < vcpus; index++) {
      const offset = index * watchBlockBytes;
      const watched = [{ gpa: ramAddress + 0x1000, value: 0 }];
      (await machine.addVcpu(placeWatchGuest(code, offset, codeAddress + offset, watched))).resume();
    }
    const progress = () =>
      machine.vcpus.map(
        (vcpu, index) => readWatchCounters(backend === 'simulated', vcpu, code, index * watchBlockBytes).reads,
      );
    while (progress().some((reads) => reads === 0)) await new Promise((resolve) => setTimeout(resolve, 5));

    const entriesBefore = machine.vcpus.map(({ counters }) => counters.entries);
    const timeBefore = machine.vcpus.map(({ thread }) => processorTime(thread));
    const start = performance.now();
    let seen = progress();
    const since = seen.map(() => start);
    const sinceCommit = seen.map(() => 0);
    let starvationMillis = 0;
    let starvationCommits = 0;
    let commits = 0;
    for (let now = start; now - start < seconds * 1000; now = performance.now()) {
      ram.setSize(commits++ % 2 === 0 ? 2 * mebibyte : mebibyte);
      const reads = progress();
      for (const [index, count] of reads.entries()) {
        const later = performance.now();
        starvationMillis = Math.max(starvationMillis, later - since[index]!);
        starvationCommits = Math.max(starvationCommits, commits - sinceCommit[index]!);
        if (count === seen[index]) continue;
        since[index] = later;
        sinceCommit[index] = commits;
      }
      seen = reads;
    }
    const elapsed = performance.now() - start;
    const entries = machine.vcpus.map(({ counters }, index) => counters.entries - entriesBefore[index]!);
    const time = machine.vcpus.reduce((sum, vcpu, index) => sum + processorTime(vcpu.thread) - timeBefore[index]!, 0);
    return {
      rule,
      vcpus,
      starvationMillis: Math.round(starvationMillis * 10) / 10,
      starvationCommits,
      entriesLeast: Math.min(...entries),
      entriesMost: Math.max(...entries),
      vcpuShare: processorShare(time, elapsed, vcpus),
      commitsPerSecond: Math.round((commits / elapsed) * 1000),
    };
  } finally {
    await machine.close();
  }
}

/** The command. Resolves to its exit status. */
export async function run(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      seconds: { type: 'string', default: '5' },
      vcpus: { type: 'string', default: '1,2,8' },
      backend: { type: 'string', default: 'kvm' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  const { backend } = values;
  if (values.help || (backend !== 'kvm' && backend !== 'simulated')) {
    console.log(usage);
    return values.help ? 0 : 2;
  }
  const columns = ['rule', 'vCPUs', 'starvation ms', 'in commits', 'entries least', 'most', 'vCPU share', 'commits/s'];
  if (!values.json) console.log(columns.map((column) => column.padStart(14)).join(''));
  const figures: Figures[] = [];
  for (const vcpus of values.vcpus.split(',').map(Number)) {
    for (const rule of ['none', 'all', 'age'] as const) {
      const line = await measure(backend, rule, vcpus, Number(values.seconds));
      figures.push(line);
      const { starvationMillis, starvationCommits, entriesLeast, entriesMost, vcpuShare, commitsPerSecond } = line;
      const cells = [
        rule,
        vcpus,
        starvationMillis,
        starvationCommits,
        entriesLeast,
        entriesMost,
        vcpuShare,
        commitsPerSecond,
      ];
      if (!values.json) console.log(cells.map((cell) => String(cell).padStart(14)).join(''));
    }
  }
  console.log(
    JSON.stringify({ backend, processors: availableParallelism(), seconds: Number(values.seconds), figures }),
  );
  return 0;
}
