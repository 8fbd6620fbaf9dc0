import { type Core, signatures } from './core.js';
import { MemorySlotsError } from './errors.js';

type Exports = Record<string, (...parameters: number[]) => number> & { __stack_pointer: WebAssembly.Global };

/**
 * The WASM build of the core over `memory`. Each thread needs an instance of its own, with its own stack: `stackTop`
 * is the arena offset just above it (stacks grow down). The module and the memory must both be shared or both not.
 */
export function wasmCore(module: WebAssembly.Module, memory: WebAssembly.Memory, stackTop: number): Core {
  let exports: Exports;
  try {
    const instance = new WebAssembly.Instance(module, { env: { memory } });
    exports = instance.exports as unknown as Exports;
  } catch (error) {
    throw new MemorySlotsError('UNSUPPORTED', `the WASM core doesn't fit this memory: ${(error as Error).message}`, {
      cause: error,
    });
  }
  exports.__stack_pointer.value = stackTop;
  const functions = Object.keys(signatures).map((name) => [name, required(exports, `memslots_${name}`)]);
  return { build: 'wasm', ...Object.fromEntries(functions) } as Core;
}

function required(exports: Exports, name: string): (...parameters: number[]) => number {
  const found = exports[name];
  if (found === undefined) throw new MemorySlotsError('UNSUPPORTED', `the WASM core lacks ${name}: build it again`);
  return found;
}
