import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Arena } from '../../ts/core/arena.js';
import { signatures } from '../../ts/core/core.js';
import { MemorySlotsError } from '../../ts/core/errors.js';
import { parseLayout } from '../../ts/core/layout.js';
import { nativeCore } from '../../ts/core/native.js';
import { chooseCore, createArena, loadWasmModule } from '../../ts/core/node.js';
import { openCore, rangeOf } from './core.js';

const build = process.env.MEMSLOTS_CORE;
const exported = readFileSync('wasm-build/exports.txt', 'utf8').trim().split('\n').sort();

describe('the WASM module for threads', () => {
  it('loads the sequence of a copy between marking it as changing and changing it, since fences are optimised away', (context) => {
    const { stdout, status } = spawnSync('wasm-dis', ['--all-features', 'wasm-build/slots-shared.wasm'], {
      encoding: 'utf8',
      maxBuffer: 2 ** 26,
    });
    if (status !== 0) context.skip('wasm-dis is not installed (it comes with emscripten)');
    // In each of a commit's two changes: the store, the load, and then the call that moves keys. See change() in map.c.
    const changes = stdout.match(
      /i32\.atomic\.store offset=12\s[^;]{0,400}?i32\.atomic\.load offset=12\s[^;]{0,120}?\(call /g,
    );
    expect(changes).toHaveLength(2);
  });
});

describe('the two builds', () => {
  it('is the one that was asked for', () => {
    expect(openCore().core.build).toBe(build);
  });

  it('is native code exactly when it says so: the shared library is then mapped, and works on the same bytes', () => {
    const { arena, core } = openCore();
    const table = arena.allocate(core.table_size(8));
    core.table_init(table, 8);
    const range = arena.allocate(arena.layout.range.bytes);
    arena.writeRange(range, rangeOf({ gpa: 0x1000, size: 0x1000, id: 5 }));
    expect(core.insert(table, range)).toBe(5);
    // The other build sees what this one wrote.
    expect(arena.wasm.find(table, 0x1fff)).toBe(5);
    const mapped = readFileSync('/proc/self/maps', 'utf8').match(/\/slots[^/\n]*\.so$/m) !== null;
    if (build === 'native') expect(mapped).toBe(true);
    else expect(core).toBe(arena.wasm);
  });

  it('lay out memory alike, and refuse one that differs', () => {
    const arena = createArena(1 << 16);
    expect(() => nativeCore(arena)).not.toThrow();
    const other = { ...arena.wasm, layout: (offset: number, room: number) => arena.wasm.layout(offset, room) - 5 };
    expect(() => arena.mustMatch(other)).toThrow(/lay out memory differently/);
  });

  it('export what the list says, no more and no less', () => {
    expect(
      Object.keys(signatures)
        .map((name) => `memslots_${name}`)
        .sort(),
    ).toEqual(exported);
    for (const shared of [true, false]) {
      const names = WebAssembly.Module.exports(loadWasmModule(shared)).map(({ name }) => name);
      expect(names.filter((name) => name.startsWith('memslots_')).sort()).toEqual(exported);
    }
  });

  it('never fall back when a build is forced that is not there', () => {
    const script = `
      import { registerHooks } from 'node:module';
      import { chooseCore, createArena } from './dist/core/node.js';
      import Module from 'node:module';
      const load = Module._load;
      Module._load = (name, ...rest) => { if (name === 'koffi') throw new Error('hidden'); return load(name, ...rest); };
      try { chooseCore(createArena(65536), 'wasm'); console.log('fell back'); } catch (error) { console.log(error.code); }`;
    const run = (forced: string) =>
      execFileSync(process.execPath, ['--input-type=module', '-e', script.replace(/.*registerHooks.*\n/, '')], {
        env: { ...process.env, MEMSLOTS_CORE: forced },
        encoding: 'utf8',
      }).trim();
    expect(run('native')).toBe('UNSUPPORTED');
    expect(run('wasm')).toBe('fell back');
  });

  it('refuse a name that is neither', () => {
    const before = process.env.MEMSLOTS_CORE;
    process.env.MEMSLOTS_CORE = 'both';
    try {
      expect(() => chooseCore(createArena(65536), 'wasm')).toThrow(/must be 'native' or 'wasm', not 'both'/);
    } finally {
      process.env.MEMSLOTS_CORE = before;
    }
  });
});

describe('the arena', () => {
  it('refuses memory that is not one', () => {
    const memory = new WebAssembly.Memory({ initial: 64, maximum: 64, shared: true });
    const handle = { module: loadWasmModule(true), memory, stackTop: 0x100000 };
    expect(() => Arena.attach(handle)).toThrow(/not an arena/);
  });

  it('refuses a shared module with unshared memory, naming the mismatch', () => {
    expect(() => Arena.create(loadWasmModule(true), 1 << 16, false)).toThrow(/doesn't fit this memory/);
    expect(() => Arena.create(loadWasmModule(false), 1 << 16, false)).not.toThrow();
  });

  it('hands out memory until it is full, and then says how much there was', () => {
    const arena = createArena(1 << 16);
    expect(() => arena.allocate(1 << 24)).toThrow(MemorySlotsError);
    expect(() => arena.allocate(1 << 24)).toThrow(/16777216 bytes don't fit/);
    expect(arena.allocate(64) % 128).toBe(0);
  });

  it('refuses a layout of another version or with a name missing', () => {
    const { text } = createArena(1 << 16).layout;
    expect(() => parseLayout(text.replace(/ABI_VERSION=\d+/, 'ABI_VERSION=99'))).toThrow(/ABI version 99/);
    expect(() => parseLayout(text.replace(/range\.gpa=\d+\n/, ''))).toThrow(/no range\.gpa/);
  });

  it('refuses offsets outside of it before native code sees them', (context) => {
    if (build !== 'native') context.skip('only the native build is handed addresses');
    const { core } = openCore();
    expect(() => core.find(-1, 0)).toThrow(/lies outside the arena/);
    expect(() => core.find(2 ** 40, 0)).toThrow(/lies outside the arena/);
    expect(() => core.find(Number.NaN, 0)).toThrow(/lies outside the arena/);
  });
});
