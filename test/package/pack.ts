import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'vitest';

/** Libraries that a package carries, by the cross compiler that builds them on other machines. */
const crossCompilers = { x64: 'x86_64-linux-gnu-gcc', arm64: 'aarch64-linux-gnu-gcc' } as const;

/** Why the package can't be made here, if it can't. */
export function whyNotPacked(): string | undefined {
  const missing = Object.entries(crossCompilers).filter(
    ([arch, compiler]) => arch !== process.arch && spawnSync(compiler, ['--version']).status !== 0,
  );
  return missing.length === 0 ? undefined : `${missing.map(([, compiler]) => compiler).join(', ')} is missing`;
}

/** Skips a test where the package can't be made. */
export function needsPackage(context: TestContext): void {
  const why = whyNotPacked();
  if (why !== undefined) context.skip(why);
}

/** npm, without colours, audits and the like. Throws with what it said if it fails. */
export function npm(folder: string, ...args: string[]): string {
  return execFileSync('npm', [...args, '--no-audit', '--no-fund', '--no-update-notifier', '--loglevel=error'], {
    cwd: folder,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

/** An empty folder outside the project, where nothing of its node_modules is found. */
export function emptyFolder(name: string): { path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), `memslots-${name}-`));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** What `npm pack` makes, in `folder`. */
export function pack(folder: string): { tarball: string; bytes: number; files: string[] } {
  const [report] = JSON.parse(npm('.', 'pack', '--json', '--pack-destination', folder)) as {
    filename: string;
    size: number;
    files: { path: string }[];
  }[];
  return {
    tarball: join(folder, report!.filename),
    bytes: report!.size,
    files: report!.files.map(({ path }) => path),
  };
}

/** Installs `tarball` in `folder` as a user would, for this machine or for `cpu`, with no script run. */
export function install(
  folder: string,
  tarball: string,
  options: { cpu?: string; also?: Record<string, string> } = {},
) {
  const manifest = { name: 'user', private: true, type: 'module', optionalDependencies: options.also ?? {} };
  writeFileSync(join(folder, 'package.json'), JSON.stringify(manifest));
  const target = options.cpu === undefined ? [] : ['--os=linux', `--cpu=${options.cpu}`];
  npm(folder, 'install', '--ignore-scripts', '--prefer-offline', ...target, tarball);
}

/** Blocks of one language in a Markdown file. */
export function codeBlocks(file: string, language: string): string[] {
  const text = readFileSync(file, 'utf8');
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, 'gm'))].map(([, code]) => code!);
}
