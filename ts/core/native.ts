import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { Arena } from './arena.js';
import { type Core, type ParameterKind, signatures } from './core.js';
import { MemorySlotsError } from './errors.js';

type Koffi = typeof import('koffi');
type NativeFunction = (...parameters: unknown[]) => number;

/** The native library: `slots.so` through koffi. One per process; each thread loads its own handle. */
export interface NativeLibrary {
  readonly koffi: Koffi;
  /** A function of the library by its C prototype. */
  function(prototype: string): NativeFunction;
}

const libraryPath = fileURLToPath(new URL('../../wasm-build/slots.so', import.meta.url));
let loaded: NativeLibrary | undefined;

/** Loads the library. Throws `UNSUPPORTED`, saying what is missing, where koffi or the library can't be loaded. */
export function loadNativeLibrary(): NativeLibrary {
  if (loaded !== undefined) return loaded;
  const require = createRequire(import.meta.url);
  let koffi: Koffi;
  try {
    koffi = require('koffi') as Koffi;
  } catch (error) {
    throw new MemorySlotsError('UNSUPPORTED', "the package 'koffi', which real KVM needs, can't be loaded", {
      cause: error,
    });
  }
  try {
    const library = koffi.load(libraryPath);
    loaded = { koffi, function: (prototype) => library.func(prototype) as NativeFunction };
  } catch (error) {
    throw new MemorySlotsError('UNSUPPORTED', `slots.so can't be loaded: ${(error as Error).message}`, {
      cause: error,
    });
  }
  return loaded;
}

const types: Record<ParameterKind, string> = { offset: 'uintptr_t', count: 'uint32_t', gpa: 'double' };

/**
 * The native build of the core over the same arena. koffi wraps integers silently, so a wrong offset would be a wild
 * pointer: they are checked here, which costs less than the call itself.
 */
export function nativeCore(arena: Arena): Core {
  const library = loadNativeLibrary();
  const base = arena.nativeBase(library);
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
