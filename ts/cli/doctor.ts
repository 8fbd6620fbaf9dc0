import { closeSync, existsSync, readdirSync, readFileSync } from 'node:fs';
import { styleText } from 'node:util';
import { formatSize } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import { loadNativeLibrary, nativePlatform, prebuiltPlatforms } from '../core/native.js';
import { createArena } from '../core/node.js';
import type { Capabilities } from '../kvm/backend.js';
import { LinuxBackend, loadKvmLibrary, openKvm } from '../kvm/linux.js';
import { compareBuilds } from '../testing/compare-builds.js';
import type { Command, Values } from './command.js';

/** One thing that was looked at. */
export interface Check {
  readonly name: string;
  /** `absent`: this host lacks something that isn't always needed. `problem`: real KVM can't be used. */
  readonly status: 'ok' | 'absent' | 'problem';
  /** What was found. */
  readonly found: string;
  /** What to do about it, unless it is `ok`. */
  readonly advice?: string;
}

/** What tells why there is no /dev/kvm, or why it can't be opened. */
export interface HostFacts {
  readonly platform: string;
  /** Text of /proc/cpuinfo. */
  readonly processors: string;
}

export const command: Command = {
  name: 'doctor',
  summary: 'Says what this host offers, and what to do about what it lacks',
  options: [{ name: 'json', help: 'print one JSON object and nothing else' }],
  details: [
    'Looks at the two builds of the core and compares them, at /dev/kvm, and at what KVM can do here. Changes nothing:',
    'it makes an empty virtual machine and closes it again.',
    '',
    'Exit status: 0 if real KVM can be used and the builds agree, else 1. The simulated KVM works in either case.',
  ].join('\n'),
  examples: ['memslots doctor', 'memslots doctor --json | jq -r \'.checks[] | select(.status != "ok") | .advice\''],
  run,
};

async function run(options: Values): Promise<number> {
  const checks = [nodeCheck(), ...coreChecks(), ...kvmChecks()];
  const usable = checks.every(({ status }) => status !== 'problem');
  const backend = usable ? 'kvm' : 'simulated';
  if (options.has('json')) {
    process.stdout.write(`${JSON.stringify({ platform: nativePlatform(), backend, checks })}\n`);
  } else {
    const lines = checks.flatMap(({ name, status, found, advice }) => [
      `${paint(status)} ${name.padEnd(20)} ${found}`,
      ...(advice === undefined ? [] : [`${' '.repeat(30)}${advice}`]),
    ]);
    const verdict = usable
      ? 'Real KVM can be used here: that is what memslots and Machine.create() choose.'
      : "Real KVM can't be used here: memslots and Machine.create() choose the simulated one.";
    process.stdout.write(`${lines.join('\n')}\n\n${verdict}\n`);
  }
  return usable ? 0 : 1;
}

function paint(status: Check['status']): string {
  const text = status.padEnd(8);
  if (!process.stdout.isTTY || process.env.NO_COLOR) return text;
  return styleText(({ ok: 'green', absent: 'yellow', problem: 'red' } as const)[status], text);
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

function nodeCheck(): Check {
  const found = `Node ${process.version} on ${nativePlatform()}`;
  return { name: 'platform', status: 'ok', found };
}

/** The WASM core, the native one, and whether they agree. */
export function coreChecks(compare = compareBuilds): Check[] {
  const checks: Check[] = [];
  try {
    createArena(1 << 20);
    checks.push({ name: 'WASM core', status: 'ok', found: 'works, on shared memory' });
  } catch (error) {
    const advice = 'lift the limit on virtual memory, if there is one (ulimit -v), or install the package again';
    return [{ name: 'WASM core', status: 'problem', found: messageOf(error), advice }];
  }
  try {
    loadNativeLibrary();
    checks.push({ name: 'native core', status: 'ok', found: 'works; it plans on real KVM, the WASM core elsewhere' });
  } catch (error) {
    const platform = nativePlatform();
    const advice = prebuiltPlatforms.some((name) => name === platform)
      ? 'install the package again, with its optional dependencies'
      : 'on Linux, build it from the sources with make build; elsewhere, use the simulated KVM';
    return [...checks, { name: 'native core', status: 'problem', found: messageOf(error), advice }];
  }
  const { transactions, calls, difference } = compare();
  checks.push(
    difference === undefined
      ? { name: 'self-test', status: 'ok', found: `both builds agree in ${calls} calls, ${transactions} transactions` }
      : {
          name: 'self-test',
          status: 'problem',
          found: `the builds differ: ${difference}`,
          advice: 'use neither: install the package again, and report this',
        },
  );
  return checks;
}

/** Whether KVM can be used, and what it can do. `path`: the device. */
export function kvmChecks(path = '/dev/kvm'): Check[] {
  let device: number;
  try {
    device = openKvm(path);
  } catch (error) {
    const cause = (error as MemorySlotsError).cause as NodeJS.ErrnoException;
    const advice = deviceAdvice(cause.code, hostFacts());
    return [{ name: path, status: 'problem', found: messageOf(error), advice }];
  }
  try {
    const backend = new LinuxBackend(createArena(1 << 20), { path });
    try {
      return [
        { name: path, status: 'ok', found: `works${moduleName()}` },
        ...capabilityChecks(backend.capabilities),
        quirkCheck(loadKvmLibrary().ioctl(device, checkExtension, disableQuirks)),
      ];
    } finally {
      backend.close();
    }
  } catch (error) {
    if (!(error instanceof MemorySlotsError)) throw error;
    const advice = 'see what it says; the simulated KVM works all the same';
    return [{ name: path, status: 'problem', found: error.message, advice }];
  } finally {
    closeSync(device);
  }
}

/** KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2, and KVM_X86_QUIRK_SLOT_ZAP_ALL (linux/kvm.h, asm/kvm.h). */
const checkExtension = 0xae03;
const disableQuirks = 213;
const zapAll = 1 << 7;

function quirkCheck(quirks: number): Check {
  if (process.arch !== 'x64') return { name: 'quirks', status: 'ok', found: 'none that slots are concerned with' };
  return quirks > 0 && quirks & zapAll
    ? { name: 'quirks', status: 'ok', found: 'deleting a slot can be limited to its own mappings (SLOT_ZAP_ALL)' }
    : {
        name: 'quirks',
        status: 'absent',
        found: 'deleting any slot drops all mappings of the guest, which costs it page faults',
        advice: 'Linux 6.12 can limit that to the slot (KVM_X86_QUIRK_SLOT_ZAP_ALL)',
      };
}

function capabilityChecks(capabilities: Capabilities): Check[] {
  const { slots, addressSpaces, dirtyRing } = capabilities;
  const needs = (name: string, there: boolean, found: string, lacking: string, advice: string): Check =>
    there ? { name, status: 'ok', found } : { name, status: 'absent', found: lacking, advice };
  return [
    needs(
      'memory slots',
      slots >= 4096,
      `${slots} in each address space, up to ${formatSize(capabilities.largestSlot)} each`,
      `only ${slots} in each address space`,
      'maps of more ranges fail with CAPACITY; Linux 5.12 and later have 32,764',
    ),
    needs(
      'address spaces',
      addressSpaces > 1 || process.arch !== 'x64',
      addressSpaces > 1 ? `${addressSpaces}: normal and system management mode` : '1, as usual on this architecture',
      '1: no system management mode',
      'Machine.smm is undefined, and SMM slots of a recording are skipped; KVM on Intel and AMD processors has 2',
    ),
    needs(
      'read-only memory',
      capabilities.readonlyMemory,
      'yes',
      'no',
      "ROM can't be mapped: creating a read-only slot fails with EINVAL",
    ),
    needs(
      'dirty log',
      capabilities.manualDirtyLog,
      'bitmaps that are read and cleared separately',
      'bitmaps that are cleared as they are read',
      'works all the same; Linux 5.2 and later protect pages again only where asked',
    ),
    needs(
      'dirty ring',
      dirtyRing > 0,
      `up to ${formatSize(dirtyRing)} for each vCPU`,
      'no',
      'dirty pages are logged in bitmaps; Linux 5.11 and later have rings on x86',
    ),
    needs(
      'guest_memfd',
      capabilities.guestMemfd,
      'yes, and it can be mapped',
      'none that a VMM can map',
      'allocate({ guestMemfd: true }) throws UNSUPPORTED; Linux 6.18 has it for ordinary guests',
    ),
    { name: 'vCPUs', status: 'ok', found: `up to ${capabilities.maxVcpus}` },
  ];
}

/** What to do where /dev/kvm can't be opened. */
export function deviceAdvice(code: string | undefined, { platform, processors }: HostFacts): string {
  if (platform !== 'linux') return 'KVM is a part of Linux: use the simulated one here';
  if (code === 'EACCES')
    return 'sudo usermod -aG kvm "$USER", then log in again; in a container, pass the group as well';
  if (code === 'EPERM') return 'let the sandbox or container use it: docker run --device /dev/kvm';
  if (code !== 'ENOENT') return 'see what the system says about it';
  if (/^flags\s*:.*\bvmx\b/m.test(processors)) return 'sudo modprobe kvm_intel; in a container, --device /dev/kvm';
  if (/^flags\s*:.*\bsvm\b/m.test(processors)) return 'sudo modprobe kvm_amd; in a container, --device /dev/kvm';
  return 'turn virtualisation on in the firmware setup or, in a virtual machine, nested virtualisation on its host';
}

function hostFacts(): HostFacts {
  const path = '/proc/cpuinfo';
  return { platform: process.platform, processors: existsSync(path) ? readFileSync(path, 'utf8') : '' };
}

/** The part of KVM that knows this kind of processor. */
function moduleName(): string {
  if (!existsSync('/sys/module')) return '';
  const found = readdirSync('/sys/module').filter((name) => name.startsWith('kvm_'));
  return found.length === 0 ? '' : ` (${found.join(', ')})`;
}
