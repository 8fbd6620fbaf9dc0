import { readFileSync } from 'node:fs';
import { Arena } from './arena.js';
import type { Core } from './core.js';
import { MemorySlotsError } from './errors.js';
import { nativeCore } from './native.js';

const modules = new Map<boolean, WebAssembly.Module>();

/** The compiled WASM core, read from the package. `shared`: the variant for shared memory. */
export function loadWasmModule(shared: boolean): WebAssembly.Module {
  let module = modules.get(shared);
  if (module === undefined) {
    const name = shared ? 'slots-shared.wasm' : 'slots.wasm';
    try {
      module = new WebAssembly.Module(readFileSync(new URL(`../../wasm-build/${name}`, import.meta.url)));
    } catch (error) {
      const message = `the WASM core (wasm-build/${name}) can't be read: run 'make build'`;
      throw new MemorySlotsError('UNSUPPORTED', message, { cause: error });
    }
    modules.set(shared, module);
  }
  return module;
}

/** A new arena for the threads of this process, with room for `bytes` bytes. */
export function createArena(bytes: number): Arena {
  return Arena.create(loadWasmModule(true), bytes, true);
}

/**
 * The build of the core that plans: `preferred`, unless the environment variable MEMSLOTS_CORE (`native` or `wasm`)
 * says otherwise. Never falls back: a build that was asked for and can't be had is an error.
 */
export function chooseCore(arena: Arena, preferred: Core['build']): Core {
  const forced = process.env.MEMSLOTS_CORE;
  if (forced !== undefined && forced !== 'native' && forced !== 'wasm') {
    throw new MemorySlotsError('INVALID', `MEMSLOTS_CORE must be 'native' or 'wasm', not '${forced}'`);
  }
  return (forced ?? preferred) === 'native' ? nativeCore(arena) : arena.wasm;
}
