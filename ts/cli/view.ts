import { spawn } from 'node:child_process';
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { MemorySlotsError } from '../core/errors.js';
import { withServer, withTrace } from '../core/page-document.js';
import { type Command, UsageError, type Values } from './command.js';
import { followPrograms, followQemu, type LiveSource } from './view-live.js';
import { type ServedTrace, startViewServer } from './view-server.js';

/** Larger logs make documents that browsers no longer open with ease. Bytes, compressed. */
const largestExport = 64 * 1024 * 1024;

export const command: Command = {
  name: 'view',
  summary: 'Shows memory slots, their changes and the holes in a browser',
  operands: '[LOG|MTREE|JSON]',
  options: [
    { name: 'live', help: 'show a program that calls shareMachine(machine) of this library, as it runs' },
    { name: 'qmp', value: 'SOCKET', help: 'show a QEMU as it runs, by its QMP socket' },
    { name: 'export', value: 'OUT.html', help: 'write one file that opens from disk, instead of serving' },
    { name: 'open', help: 'open the page in the browser' },
    { name: 'json', help: 'print one JSON object: the address, or the file written' },
  ],
  details: [
    'Serves the page on this computer alone (127.0.0.1, a free port) until it is interrupted. Without a file, the page',
    'takes one by drag and drop; what is dropped stays in the browser.',
    '',
    'With --live, one line in your program shows it, after `memslots view --live` was started:',
    "  import { shareMachine } from 'kvm-memslots';  await shareMachine(machine);",
    "With --qmp, QEMU is asked for 'info mtree -f' several times a second, and nothing else; give it",
    "'-qmp unix:SOCKET,server=on,wait=off'. Live data takes the token in the printed address.",
    '',
    'The file that --export writes holds the log as it is, with its addresses and process numbers, and reaches no network.',
    "The page's own button Export does the same with whatever is shown, of live data with all that came so far.",
  ].join('\n'),
  examples: [
    'memslots view qemu.log --open',
    'memslots view --export bug-1234.html qemu.log.gz',
    'memslots view --live --open',
    'memslots view --qmp /run/vm.qmp',
  ],
  run,
};

async function run(options: Values, operands: readonly string[]): Promise<number> {
  if (operands.length > 1) throw new UsageError(`view takes one file, not ${operands.length}`);
  const [path] = operands;
  const output = options.string('export');
  const page = await readPage();
  if (output !== undefined) {
    if (path === undefined || options.has('live') || options.has('qmp')) {
      throw new UsageError('--export needs a file to export');
    }
    return await exportPage(page, path, output, options.has('json'));
  }
  const source = await sourceOf(options, path);
  try {
    const server = await startViewServer(withServer(page), source?.trace);
    const json = options.has('json');
    process.stdout.write(json ? `${JSON.stringify({ url: server.url })}\n` : `${server.url}\nCtrl-C ends it.\n`);
    const close = options.has('open') ? openBrowser(server.url) : () => {};
    await new Promise<void>((resolve) => {
      for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
    });
    close();
    await server.close();
  } finally {
    source?.close();
  }
  return 0;
}

async function sourceOf(options: Values, path: string | undefined): Promise<LiveSource | undefined> {
  const qmp = options.string('qmp');
  const given = [path !== undefined && 'a file', options.has('live') && '--live', qmp !== undefined && '--qmp'];
  const sources = given.filter((name) => name !== false);
  if (sources.length > 1) throw new UsageError(`view shows one thing, not both ${sources.join(' and ')}`);
  const note = (text: string) => void process.stderr.write(`memslots: ${text}\n`);
  if (options.has('live')) return await followPrograms(note);
  if (qmp !== undefined) return await followQemu(qmp, note);
  return path === undefined ? undefined : { trace: await fileTrace(path), close: () => {} };
}

async function readPage(): Promise<string> {
  try {
    return await readFile(new URL('../page/viewer.html', import.meta.url), 'utf8');
  } catch (error) {
    throw new MemorySlotsError('UNSUPPORTED', "the page isn't built: run 'make build'", { cause: error });
  }
}

async function fileTrace(path: string): Promise<ServedTrace> {
  try {
    if (!(await stat(path)).isFile()) throw new Error('it is not a file');
  } catch (error) {
    throw new MemorySlotsError('INVALID', `${path} can't be read: ${(error as Error).message}`, { cause: error });
  }
  return { name: basename(path), live: false, open: () => createReadStream(path) };
}

async function exportPage(page: string, path: string, output: string, json: boolean): Promise<number> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (error) {
    throw new MemorySlotsError('INVALID', `${path} can't be read: ${(error as Error).message}`, { cause: error });
  }
  const packed = bytes[0] === 0x1f && bytes[1] === 0x8b ? bytes : gzipSync(bytes, { level: 9 });
  if (packed.length > largestExport) {
    const message = `${path} takes ${packed.length} bytes compressed, and a page holds at most ${largestExport}`;
    throw new MemorySlotsError('CAPACITY', `${message}: serve it instead`);
  }
  const document = withTrace(page, { name: basename(path), data: packed.toString('base64') });
  await writeFile(output, document);
  const size = Buffer.byteLength(document);
  process.stdout.write(json ? `${JSON.stringify({ output, bytes: size })}\n` : `${output}: ${size} bytes\n`);
  return 0;
}

/**
 * Opens `url` by way of a file that only this user can read: everybody can read the parameters of a program, and the
 * address holds the token. The file is gone when the function that is returned was called.
 */
function openBrowser(url: string): () => void {
  const folder = mkdtempSync(join(tmpdir(), 'memslots-view-'));
  const file = join(folder, 'open.html');
  writeFileSync(file, `<!doctype html><meta http-equiv="refresh" content="0;url=${url}">\n`, { mode: 0o600 });
  const program = process.platform === 'darwin' ? 'open' : 'xdg-open';
  const child = spawn(program, [file], { stdio: 'ignore', detached: true });
  child.on('error', (error) =>
    process.stderr.write(`memslots: no browser was opened (${program}: ${error.message})\n`),
  );
  child.unref();
  return () => rmSync(folder, { recursive: true, force: true });
}
