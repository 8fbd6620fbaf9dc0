import { createInterface } from 'node:readline';
import { describe, expect, test } from 'vitest';
import { buildCli, startCli } from './built-cli.js';
import { compare } from './memory/compare.js';
import { Random } from './memory/model.js';
import { LiveQemu, whyNoQemu } from './qemu/live-qemu.js';

const reason = whyNoQemu();
const steps = 500;
/** Another run: MEMSLOTS_SEED=N npm run conformance:qemu. */
const seed = Number(process.env.MEMSLOTS_SEED ?? Math.floor(Math.random() * 2 ** 31));

interface Machine {
  readonly name: string;
  readonly bus: string;
  readonly options: readonly string[];
  /** The first of seven PAM registers, and the SMRAM register, in the configuration space of device 0. */
  readonly pam: number;
  readonly smram: number;
  readonly hotplug: boolean;
}

const machines: Machine[] = [
  { name: 'pc', bus: 'pci.0', options: ['-m', '512'], pam: 0x59, smram: 0x72, hotplug: false },
  {
    name: 'q35',
    bus: 'pcie.0',
    options: ['-m', '512,slots=32,maxmem=8G', '-device', 'intel-iommu'],
    pam: 0x90,
    smram: 0x9d,
    hotplug: true,
  },
];

function start({ name, bus, options }: Machine): Promise<LiveQemu> {
  const devices = ['-device', `VGA,bus=${bus},addr=2`, '-device', `ivshmem-plain,memdev=m,bus=${bus},addr=3`];
  const memory = ['-object', 'memory-backend-ram,id=m,share=on,size=16M'];
  const more = ['-device', `bochs-display,bus=${bus},addr=4`];
  // Two bridges with a display behind each: their regions have the same names.
  const bridges = [5, 6].flatMap((device) => [
    ...['-device', `pci-bridge,bus=${bus},addr=${device},chassis_nr=${device},id=b${device}`],
    ...['-device', `bochs-display,bus=b${device},addr=1,vgamem=4M`],
  ]);
  return LiveQemu.start(['-machine', name, ...options, ...memory, ...devices, ...more, ...bridges]);
}

const busBehind = (bridge: number) => bridge - 4;
/** Where the window of a bridge may begin, which is 16 MiB away from the other's. */
const firstMebibyte = (bridge: number) => 0xee0 + (bridge - 5) * 16;

/** Makes everything answer, with each bridge forwarding its bus. */
async function setUp(qemu: LiveQemu): Promise<void> {
  for (const device of [2, 3, 4, 5, 6]) await qemu.configure(device, 4, 3, 'w');
  for (const bridge of [5, 6]) {
    const bus = busBehind(bridge);
    await qemu.configure(bridge, 0x18, (bus << 8) | (bus << 16));
    await qemu.configure(1, 0x10, firstMebibyte(bridge) * 2 ** 20, 'l', bus);
    await qemu.configure(1, 4, 3, 'w', bus);
  }
}

/** One random write to what decides the map, with BARs in ranges that don't overlap, or a DIMM plugged. */
async function step(qemu: LiveQemu, { pam, smram, hotplug }: Machine, random: Random, dimms: number): Promise<number> {
  const kind = random.below(100);
  if (kind < 40) {
    const value = random.pick([0, 0x11, 0x33, 0x22, 0x30, 3, 0x10, 1, 0x31, 0x13]);
    await qemu.configure(0, pam + random.below(7), value, 'b');
  } else if (kind < 50) await qemu.configure(0, smram, random.pick([2, 0xa, 0x4a, 0x42]), 'b');
  else if (kind < 62) await qemu.configure(2, 0x10, 0xe0000000 + random.below(14) * 0x1000000);
  else if (kind < 72) await qemu.configure(3, 0x18, 0xc0000000 + random.below(24) * 0x1000000);
  else if (kind < 80) await qemu.configure(4, 0x10, 0xa0000000 + random.below(8) * 0x4000000);
  else if (kind < 84) await qemu.configure(random.pick([2, 3, 4, 5, 6]), 4, random.pick([0, 3]), 'w');
  else if (kind < 88) {
    // A bridge forwards from its base to its limit, in MiB; a limit below the base closes it.
    const bridge = random.pick([5, 6]);
    const base = firstMebibyte(bridge) + random.below(8);
    await qemu.configure(bridge, 0x20, (base << 4) | ((base + random.below(9) - 1) << 20));
  } else if (kind < 92) {
    const bridge = random.pick([5, 6]);
    await qemu.configure(1, 0x10, (firstMebibyte(bridge) + 4 * random.below(4)) * 2 ** 20, 'l', busBehind(bridge));
  } else if (hotplug && dimms < 30) {
    const id = `d${dimms}`;
    await qemu.qmp.command('object-add', { 'qom-type': 'memory-backend-ram', id, size: 64 * 2 ** 20 });
    await qemu.qmp.command('device_add', { driver: 'pc-dimm', id: `dimm${dimms}`, memdev: id });
    return dimms + 1;
  }
  return dimms;
}

describe('a QEMU on this machine', () => {
  test.for(machines)(
    `$name: has the map its tree comes to after each of ${steps} random steps`,
    async (machine, ctx) => {
      if (reason !== undefined) ctx.skip(reason);
      console.log(`${machine.name}: seed ${seed}`);
      const random = new Random(seed);
      const qemu = await start(machine);
      try {
        await setUp(qemu);
        const maps = new Set<string>();
        let dimms = 0;
        for (let index = 0; index < steps; index++) {
          dimms = await step(qemu, machine, random, dimms);
          const { tree, flat } = await qemu.state();
          const spaces = compare(tree, flat);
          const memory = spaces.find(({ name }) => name === 'memory');
          expect(memory?.fromFlat.length).toBeGreaterThan(1);
          for (const { name, fromTree, fromFlat } of spaces) {
            expect(fromTree, `seed ${seed}, step ${index}, address space ${name}`).toEqual(fromFlat);
          }
          maps.add(JSON.stringify(memory!.fromFlat, (_, value) => (typeof value === 'bigint' ? String(value) : value)));
        }
        // Steps that change nothing would prove nothing.
        expect(maps.size).toBeGreaterThan(steps / 4);
      } finally {
        await qemu.stop();
      }
    },
  );

  test('is watched by memslots watch while a BAR moves', async (ctx) => {
    if (reason !== undefined) ctx.skip(reason);
    const cli = await buildCli();
    const qemu = await start(machines[0]!);
    try {
      await setUp(qemu);
      await qemu.configure(3, 0x18, 0xc0000000);
      // QEMU serves one client at a time.
      qemu.qmp.close();
      const { process, ended } = startCli(cli, ['watch', '--qmp', qemu.qmpPath, '--json', '--interval', '5']);
      const events: { addressSpace?: string; removed?: unknown; added?: { region: string }[] }[] = [];
      let arrived: () => void = () => undefined;
      createInterface({ input: process.stdout }).on('line', (line) => {
        events.push(JSON.parse(line));
        arrived();
      });
      const count = (wanted: number) =>
        new Promise<void>((resolve) => {
          arrived = () => events.length >= wanted && resolve();
          arrived();
        });
      await count(2);
      expect(events[1]?.added?.map(({ region }) => region)).toEqual(expect.arrayContaining(['pc.ram', 'm', 'pc.bios']));
      await qemu.configure(3, 0x18, 0xc4000000);
      await count(3);
      const bar = { size: 16 * 2 ** 20, kind: 'ram', region: 'm', offset: 0, readonly: false };
      const { addressSpace, removed, added } = events[2]!;
      expect([addressSpace, removed, added]).toEqual([
        'memory',
        [{ gpa: 0xc0000000, ...bar }],
        [{ gpa: 0xc4000000, ...bar }],
      ]);
      process.kill('SIGINT');
      expect((await ended).status).toBe(0);
    } finally {
      await qemu.stop();
    }
  });
});
