import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { Arena } from './arena.js';
import { type Core, type ParameterKind, signatures } from './core.js';
import { MemorySlotsError } from './errors.js';

type Koffi = typeof import('koffi');
type NativeFunction = (...parameters: unknown[]) => number;

/** The native library through koffi. One per process; each thread loads its own handle. */
export interface NativeLibrary {
  readonly koffi: Koffi;
  /** A function of the library by its C prototype. */
  function(prototype: string): NativeFunction;
}

/** The platforms whose library the package carries. */
export const prebuiltPlatforms = ['linux-x64', 'linux-arm64'] as const;

let loaded: NativeLibrary | undefined;

/** What the native library has to be built for, as in its file's name: `linux-x64`, `linux-arm64-musl`, `darwin-arm64`. */
export function nativePlatform(): string {
  return `${process.platform}-${process.arch}${usesMusl() ? '-musl' : ''}`;
}

/** The C library of this process is told by its loader, which is mapped like any library. */
function usesMusl(): boolean {
  if (process.platform !== 'linux') return false;
  try {
    return readFileSync('/proc/self/maps', 'utf8').includes('/ld-musl-');
  } catch {
    return false;
  }
}

/** Loads the library. Throws `UNSUPPORTED`, saying what is missing, where koffi or the library can't be loaded. */
export function loadNativeLibrary(): NativeLibrary {
  if (loaded !== undefined) return loaded;
  const platform = nativePlatform();
  const built = new URL(`../../wasm-build/slots-${platform}.so`, import.meta.url);
  // For those who work on the core: a build for coverage, or for a sanitizer.
  const path = process.env.MEMSLOTS_LIBRARY ?? fileURLToPath(built);
  if (!existsSync(path)) {
    const what = `there is no native library for ${platform} here (packages have ${prebuiltPlatforms.join(' and ')})`;
    throw new MemorySlotsError('UNSUPPORTED', `${what}; the simulated KVM and the WASM core work without`);
  }
  const require = createRequire(import.meta.url);
  let koffi: Koffi;
  try {
    koffi = require('koffi') as Koffi;
  } catch (error) {
    const advice = 'install it, without leaving out optional dependencies';
    const message = `the package 'koffi', which real KVM needs, can't be loaded: ${advice}`;
    throw new MemorySlotsError('UNSUPPORTED', message, { cause: error });
  }
  try {
    const library = koffi.load(path);
    loaded = { koffi, function: (prototype) => library.func(prototype) as NativeFunction };
  } catch (error) {
    throw new MemorySlotsError('UNSUPPORTED', `the native library can't be loaded: ${(error as Error).message}`, {
      cause: error,
    });
  }
  return loaded;
}

const types: Record<ParameterKind, string> = { offset: 'uintptr_t', count: 'uint32_t', gpa: 'double' };

/** The address at which native code sees the arena: the same in every thread of the process. */
export function addressOf(arena: Arena): number {
  return Number(loadNativeLibrary().koffi.address(arena.octets));
}

/**
 * The native build of the core over the same arena. koffi wraps integers silently, so a wrong offset would be a wild
 * pointer: they are checked here, which costs less than the call itself.
 */
export function nativeCore(arena: Arena): Core {
  const library = loadNativeLibrary();
  const base = addressOf(arena);
  const end = arena.bytes;
  const functions = Object.entries(signatures).map(([name, kinds]) => {
    const list = kinds as readonly ParameterKind[];
    const call = library.function(`int32_t memslots_${name}(${list.map((kind) => types[kind]).join(', ') || 'void'})`);
    const offsets = list.flatMap((kind, index) => (kind === 'offset' ? [index] : []));
    const wrapped = (...parameters: number[]): number => {
      for (const index of offsets) {
        const offset = parameters[index]!;
        if (!(offset >= 0 && offset < end)) {
          throw new MemorySlotsError('INVALID', `offset ${offset} lies outside the arena of ${end} bytes`);
        }
        parameters[index] = base + offset;
      }
      return call(...parameters);
    };
    return [name, wrapped];
  });
  const core = { build: 'native', ...Object.fromEntries(functions) } as Core;
  arena.mustMatch(core);
  return core;
}
