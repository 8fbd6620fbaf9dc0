import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { withServer, withTrace } from '../../ts/core/page-document.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const log = join(root, 'test/data/qemu/churn-pc-qemu10.0.log');
const page = () => readFileSync(join(root, 'dist/page/viewer.html'), 'utf8');

/** The JSON that a document's page would read. */
function inlined(document: string): { name: string; data: string } | null {
  return JSON.parse(/<script type="application\/json" id="trace">(.*?)<\/script>/s.exec(document)![1]!);
}

describe('the page as a document', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'memslots-view-'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test('has a policy that allows no network, and the server’s that of itself alone', () => {
    const policy = (document: string) => /http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(document)![1]!;
    const built = policy(page());
    expect(built).toContain("default-src 'none'");
    expect(built).toContain("connect-src 'none'");
    expect(built).not.toMatch(/https?:|\*|unsafe-inline|'unsafe-eval'/);
    const served = withServer(page());
    expect(policy(served)).toBe(built.replace("connect-src 'none'", "connect-src 'self'"));
    expect(policy(withTrace(served, { name: 'x', data: '' }))).toBe(built);
  });

  test('names no address outside itself', () => {
    const urls = page().match(/(?:https?:)?\/\/[a-z0-9.-]+\.[a-z]{2,}/gi) ?? [];
    expect(urls).toEqual([]);
  });

  test('holds a trace whose name tries to end its element', () => {
    const name = '</script><script>alert(1)</script><!-- \u2028';
    const document = withTrace(page(), { name, data: 'AAAA' });
    expect(inlined(document)).toEqual({ name, data: 'AAAA' });
    expect(document.match(/<script/g)).toHaveLength(page().match(/<script/g)!.length);
  });

  test('is exported with the log as it is, in less than 1.5 MB', () => {
    const output = join(folder, 'out.html');
    const answer = execFileSync(process.execPath, ['dist/cli.js', 'view', '--export', output, '--json', log], {
      cwd: root,
      encoding: 'utf8',
    });
    const document = readFileSync(output, 'utf8');
    expect(JSON.parse(answer)).toEqual({ output, bytes: Buffer.byteLength(document) });
    expect(Buffer.byteLength(document)).toBeLessThan(1_500_000);
    const { name, data } = inlined(document)!;
    expect(name).toBe('churn-pc-qemu10.0.log');
    expect(gunzipSync(Buffer.from(data, 'base64'))).toEqual(readFileSync(log));
  });

  test('is not exported without a file, nor of one that is not there', () => {
    const run = (...parameters: string[]) => {
      try {
        execFileSync(process.execPath, ['dist/cli.js', 'view', ...parameters], { cwd: root, stdio: 'pipe' });
        return 'no error';
      } catch (error) {
        return String((error as { stderr: Buffer }).stderr);
      }
    };
    expect(run('--export', join(folder, 'x.html'))).toContain('--export needs a file');
    expect(run('--export', join(folder, 'x.html'), join(folder, 'none.log'))).toContain("can't be read");
    expect(run(join(folder, 'none.log'))).toContain("can't be read");
    expect(run('--live', log)).toContain('view shows one thing, not both a file and --live');
  });
});
