import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { needsKvm } from '../kvm/backends.js';
import { emptyFolder } from './pack.js';

const pages = ['README.md', ...readdirSync('docs').flatMap((name) => (name.endsWith('.md') ? [`docs/${name}`] : []))];
const folder = emptyFolder('docs');
afterAll(() => folder.remove());

const fenced = /^```(\w*)\n([\s\S]*?)^```$/gm;

/** Fenced blocks of a page: their language, their text, and the line they start at. */
function blocks(page: string): { language: string; code: string; at: string }[] {
  const text = readFileSync(page, 'utf8');
  return [...text.matchAll(fenced)].map((match) => ({
    language: match[1]!,
    code: match[2]!,
    at: `${page}:${text.slice(0, match.index).split('\n').length}`,
  }));
}

const all = pages.flatMap(blocks);

beforeAll(() => {
  // What the commands in the text are about.
  copyFileSync('test/data/qemu/boot-pc-qemu10.0.log', join(folder.path, 'qemu.log'));
  const { snapshots } = JSON.parse(
    gunzipSync(readFileSync('test/data/qemu/churn-pc-qemu10.0.snaps.json.gz')).toString(),
  ) as { snapshots: { tree: string }[] };
  writeFileSync(join(folder.path, 'tree.txt'), snapshots[0]!.tree);
  const bin = join(folder.path, 'bin');
  mkdirSync(bin);
  writeFileSync(join(bin, 'memslots'), `#!/bin/sh\nexec '${process.execPath}' '${resolve('dist/cli.js')}' "$@"\n`);
  chmodSync(join(bin, 'memslots'), 0o755);
});

describe('code in the documentation', () => {
  it('is in languages that are run, or drawn', () => {
    expect(all.length).toBeGreaterThan(10);
    expect([...new Set(all.map(({ language }) => language))].sort()).toEqual(['js', 'sh', 'text']);
  });

  it.each(pages)('is all fenced in %s, so that none goes unseen', (page) => {
    const rest = readFileSync(page, 'utf8').replaceAll(fenced, '');
    expect(rest).not.toMatch(/^\s*(```|~~~)/m);
    // What is indented after an empty line is code, unless it goes on with a list.
    expect(rest).not.toMatch(/\n\n {4}/);
  });

  it.for(all.filter(({ language }) => language === 'js'))('of $at works when pasted', (block, context) => {
    if (block.code.includes("backend: 'kvm'")) needsKvm(context, 'kvm');
    const { status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', block.code], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    expect([status, stderr]).toEqual([0, '']);
  });

  it.each(all.filter(({ language }) => language === 'sh'))(
    'of $at: each command runs, or is a target of make',
    (block) => {
      for (const commented of block.code.trim().split('\n')) {
        const line = commented.replace(/ +# .*/, '');
        if (line.startsWith('make ')) {
          const { status, stderr } = spawnSync('make', ['-n', ...line.split(' ').slice(1)], { encoding: 'utf8' });
          expect(status, stderr).toBe(0);
          continue;
        }
        expect(line).toMatch(/^memslots /);
        const env = { ...process.env, PATH: `${folder.path}/bin:${process.env.PATH}` };
        const { status, stderr } = spawnSync('sh', ['-c', line], { cwd: folder.path, encoding: 'utf8', env });
        // The doctor's status says whether real KVM can be used.
        expect(line === 'memslots doctor' ? [0, 1] : [0], `${line}: ${stderr}`).toContain(status);
      }
    },
  );

  it('prints what it says it prints', () => {
    const run = (page: string, index: number) => {
      const code = blocks(page).filter(({ language }) => language === 'js')[index]!.code;
      return execFileSync(process.execPath, ['--input-type=module', '-e', code], { encoding: 'utf8' });
    };
    expect(run('README.md', 0)).toMatch(/(kvm|simulated).*gpa: 917504/s);
    const concepts = 'exact in a window: delete, create, create\nstable while vCPUs run: delete\n';
    expect(run('docs/concepts.md', 0)).toBe(concepts);
    for (const line of concepts.trim().split('\n')) expect(readFileSync('docs/concepts.md', 'utf8')).toContain(line);
    expect(run('docs/backend.md', 0)).toMatch(/^deleting slot 0 .* failed with EPERM.*the old layout stands\n1\n$/s);
    expect(run('docs/guest.md', 1)).toMatch(
      /^commit 1: 1 calls, window none\nvCPUs were kept out for \S+ µs\ncommit 2: 2 calls, window [\d.]+\n$/,
    );
    expect(run('docs/dirty-logging.md', 0)).toBe('12288 1\n');
    expect(run('docs/guest.md', 2)).toMatch(/create slot 0 .*: ok\ndelete slot 0 .*: ENOMEM/);
  });

  it("of the README's demo has the lines that the demo prints", () => {
    const said = blocks('README.md').find(({ code }) => code.startsWith('Backend: '))!.code;
    const args = ['dist/cli.js', 'demo', '--backend', 'simulated', '--seconds', '2'];
    const { stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    expect(stderr).toBe('');
    const figures = (text: string) =>
      text
        .trim()
        .split('\n')
        .slice(1)
        .map((line) => line.replaceAll(/[\d.]+( [KMGT]iB)?| {2,}|-/g, ' ').replaceAll(/ +/g, ' '));
    expect(figures(said)).toEqual(figures(stdout));
  });

  it('of the guest on real KVM shows no hole', (context) => {
    needsKvm(context, 'kvm');
    const [example] = blocks('docs/guest.md');
    const out = execFileSync(process.execPath, ['--input-type=module', '-e', example!.code], { encoding: 'utf8' });
    expect(out).toMatch(/rounds: [1-9]\d*, spuriousExits: 0, internalErrors: 0/);
  });
});

describe('the documentation', () => {
  it.each(pages)('%s: links lead to files and headings that are there', (page) => {
    const text = readFileSync(page, 'utf8');
    for (const [, target] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target!)) continue;
      const [path, heading] = target!.split('#');
      const file = path === '' ? page : join(dirname(page), path!);
      expect(existsSync(file), `${page} links to ${target}`).toBe(true);
      if (heading === undefined) continue;
      const headings = [...readFileSync(file, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, title]) =>
        title!
          .toLowerCase()
          .replaceAll(/[^\w -]/g, '')
          .replaceAll(' ', '-'),
      );
      expect(headings, `${page} links to ${target}`).toContain(heading);
    }
  });

  it('is all linked from the README', () => {
    const readme = readFileSync('README.md', 'utf8');
    for (const page of pages.slice(1)) expect(readme).toContain(`(${page})`);
    // Five screens of a terminal.
    expect(readme.split('\n').length).toBeLessThan(250);
  });

  it('has an API reference that is as the doc comments are: make docs', () => {
    const out = join(folder.path, 'api');
    execFileSync(process.execPath, ['docs/api.mjs', out], { stdio: 'pipe' });
    const names = readdirSync(out).sort();
    expect(readdirSync('docs/api').sort()).toEqual(names);
    for (const name of names) {
      expect(readFileSync(join('docs/api', name), 'utf8'), name).toBe(readFileSync(join(out, name), 'utf8'));
    }
  });
});
