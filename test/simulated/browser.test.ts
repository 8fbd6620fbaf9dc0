import { spawn } from 'node:child_process';
import { accessSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { describe, expect, test } from 'vitest';

const chromium = '/usr/bin/chromium';
const root = fileURLToPath(new URL('../..', import.meta.url));

/** Both workers as single files, by name. */
async function bundles(): Promise<Map<string, Uint8Array>> {
  const { outputFiles } = await build({
    absWorkingDir: root,
    entryPoints: ['test/simulated/browser-owner.ts', 'ts/kvm/simulated-web-worker.ts'],
    bundle: true,
    format: 'esm',
    platform: 'browser',
    outdir: 'nowhere',
    entryNames: '[name]',
    write: false,
  });
  return new Map(outputFiles.map(({ path, contents }) => [path.slice(path.lastIndexOf('/')), contents]));
}

describe('in a browser', () => {
  test('vCPUs in Web Workers see the holes of naive updates, and none of atomic ones', async (context) => {
    try {
      accessSync(chromium);
    } catch {
      context.skip(`there is no ${chromium}`);
    }
    const files = await bundles();
    files.set('/slots-shared.wasm', readFileSync(join(root, 'wasm-build/slots-shared.wasm')));
    files.set('/', Buffer.from(`<!doctype html><script>new Worker('browser-owner.js', { type: 'module' })</script>`));
    let report!: (text: string) => void;
    const result = new Promise<string>((resolve) => {
      report = resolve;
    });
    const server = createServer((request, response) => {
      // Without these two a page has no shared memory.
      response.setHeader('Cross-Origin-Opener-Policy', 'same-origin');
      response.setHeader('Cross-Origin-Embedder-Policy', 'require-corp');
      const file = files.get(request.url ?? '');
      if (request.method === 'POST') {
        let body = '';
        request.on('data', (part) => {
          body += part;
        });
        request.on('end', () => report(body));
        response.end();
      } else if (file === undefined) {
        response.writeHead(404).end();
      } else {
        const type = request.url?.endsWith('.js') ? 'text/javascript' : 'application/wasm';
        response.setHeader('Content-Type', request.url === '/' ? 'text/html' : type);
        response.end(file);
      }
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const profile = mkdtempSync(join(tmpdir(), 'memslots-browser-'));
    const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'];
    const quiet = ['--disable-background-networking', '--disable-component-update', `--user-data-dir=${profile}`];
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
    // A debugging port keeps a headless browser running.
    const browser = spawn(chromium, [...flags, ...quiet, '--remote-debugging-port=0', url], { stdio: 'ignore' });
    const late = new Promise<string>((resolve) => {
      setTimeout(resolve, 60_000, '{"exit":"not within a minute"}').unref();
    });
    const gone = new Promise<string>((resolve) => browser.once('exit', (status) => resolve(`{"exit":${status}}`)));
    try {
      const found = JSON.parse(await Promise.race([result, gone, late])) as {
        atomic: { mmio: number; wrong: number };
        naive: { mmio: number; wrong: number };
        reads: number;
      };
      expect(found).not.toHaveProperty('error');
      expect(found).not.toHaveProperty('exit');
      expect(found.atomic).toEqual({ mmio: 0, wrong: 0 });
      expect(found.naive.mmio).toBeGreaterThan(0);
      expect(found.naive.wrong).toBe(found.naive.mmio);
    } finally {
      browser.kill();
      await gone;
      server.close();
      rmSync(profile, { recursive: true, force: true, maxRetries: 30, retryDelay: 100 });
    }
  });
});
