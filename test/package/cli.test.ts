import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it, type TestContext } from 'vitest';
import { nearest } from '../../ts/cli/command.js';

const version = (JSON.parse(readFileSync('package.json', 'utf8')) as { version: string }).version;

function memslots(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const { MEMSLOTS_CORE: _, ...env } = process.env;
  return spawnSync(process.execPath, ['dist/cli.js', ...args], { encoding: 'utf8', env });
}

const names = [...memslots('--help').stdout.matchAll(/^ {2}([a-z][a-z-]*) +[A-Z]/gm)].map(([, name]) => name!);

describe('memslots', () => {
  it('says its version', () => {
    expect(memslots('--version')).toEqual(expect.objectContaining({ status: 0, stdout: `${version}\n`, stderr: '' }));
  });

  it('lists its commands and exit statuses with --help, and also, as an error, without a command', () => {
    const { stdout, status } = memslots('--help');
    expect(status).toBe(0);
    expect(names).toEqual(expect.arrayContaining(['analyze', 'demo', 'doctor', 'flatten', 'replay', 'watch']));
    for (const code of [0, 1, 2, 130]) expect(stdout).toMatch(new RegExp(`^ {2}${code} `, 'm'));
    expect(memslots()).toEqual(expect.objectContaining({ status: 2, stdout: '', stderr: stdout }));
    for (const alias of ['-h', 'help']) expect(memslots(alias).stdout).toBe(stdout);
    for (const line of stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(120);
  });

  it.each(names)('explains %s with its options and an example', (name) => {
    const { stdout, stderr, status } = memslots(name, '--help');
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout).toContain('--help');
    expect(stdout).toMatch(new RegExp(`Examples\\n  memslots ${name}`));
    for (const same of [
      [name, '-h'],
      ['help', name],
    ])
      expect(memslots(...same).stdout).toBe(stdout);
    for (const line of stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(120);
  });

  it.each([
    [['doctr'], "unknown command 'doctr': did you mean 'doctor'?"],
    [['help', 'doctr'], "unknown command 'doctr': did you mean 'doctor'?"],
    [['--versoin'], "unknown command '--versoin': did you mean '--version'?"],
    [['toString'], "unknown command 'toString'"],
    [['demo', '--jsn'], 'unknown option --jsn: did you mean --json?'],
    [['demo', '--seconds', 'soon'], "--seconds takes an integer from 1 to 86400, not 'soon'"],
    [['demo', '--backend', 'xen'], "--backend takes one of auto, kvm, simulated, not 'xen'"],
    [['doctor', 'me'], "Unexpected argument 'me'"],
  ])('answers %j with a message, the way to the help, and status 2', (args, message) => {
    const { status, stdout, stderr } = memslots(...args);
    expect([status, stdout]).toEqual([2, '']);
    expect(stderr).toContain(message);
    const command = names.find((name) => name === args[0]);
    expect(stderr).toContain(`See memslots ${command === undefined ? '' : `${command} `}--help.`);
  });

  it('guesses words at most two edits away', () => {
    expect(nearest('reply', ['replay', 'demo'])).toBe('replay');
    expect(nearest('xyz', ['replay', 'demo'])).toBeUndefined();
  });

  it('has a manual page that is as its commands are: make docs', () => {
    const { stdout, status } = memslots('--man');
    expect(status).toBe(0);
    for (const name of names) expect(stdout).toContain(`.SS "memslots ${name}`);
    expect(readFileSync('docs/memslots.1', 'utf8')).toBe(stdout);
  });

  /** What a command writes to a terminal, with nothing of this environment: CI, for one, changes what Node takes it for. */
  function onTerminal(context: TestContext, command: string, env: NodeJS.ProcessEnv = {}): string {
    if (!existsSync('/usr/bin/script')) context.skip('there is no script(1) to make a terminal');
    return spawnSync('/usr/bin/script', ['-qec', `'${process.execPath}' dist/cli.js ${command}`, '/dev/null'], {
      encoding: 'utf8',
      env: { PATH: process.env.PATH, TERM: 'xterm', ...env },
    }).stdout;
  }

  it('colours on terminals only, and not where NO_COLOR is set', (context) => {
    const introducer = '\u001b[';
    expect(memslots('doctor').stdout).not.toContain(introducer);
    expect(onTerminal(context, 'doctor')).toContain(introducer);
    expect(onTerminal(context, 'doctor', { NO_COLOR: '1' })).not.toContain(introducer);
  });

  it('shows progress on terminals only, and not with --json', (context) => {
    const demo = 'demo --seconds 1 --backend simulated';
    const share = /\ratomic +\d+ %/;
    const piped = memslots(...demo.split(' '));
    expect(piped.stderr).toBe('');
    expect(piped.stdout).not.toMatch(share);
    expect(onTerminal(context, demo)).toMatch(share);
    expect(onTerminal(context, `${demo} --json`)).not.toMatch(share);
  });
});
