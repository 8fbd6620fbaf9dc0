import type { Command, Option } from './command.js';

/** Text for troff: no character of it is a request. */
function plain(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('…', '...')
    .replace(/^([.'])/gm, '\\&$1');
}

/** Paragraphs parted by empty lines. An indented line begins a line of its own. */
function paragraphs(text: string): string[] {
  return text.split('\n').map((line) => {
    if (line === '') return '.PP';
    return /^\s/.test(line) ? `.br\n${plain(line.trim())}` : plain(line);
  });
}

function optionLines({ name, value, help }: Option): string[] {
  const argument = value === undefined ? '' : ` \\fI${plain(value)}\\fR`;
  return ['.TP', `\\fB\\-\\-${plain(name)}\\fR${argument}`, plain(help)];
}

function commandLines(command: Command): string[] {
  const operands = command.operands === undefined ? '' : ` \\fI${plain(command.operands)}\\fR`;
  return [
    `.SS "memslots ${plain(command.name)}${operands} [OPTION ...]"`,
    plain(command.summary),
    ...command.options.flatMap(optionLines),
    ...(command.details === undefined ? [] : ['.PP', ...paragraphs(command.details)]),
    '.PP',
    '.nf',
    ...command.examples.map((example) => `    ${plain(example)}`),
    '.fi',
  ];
}

/** The manual page of `memslots` in troff, made from the commands' own tables. */
export function manual(
  version: string,
  commands: readonly Command[],
  exitStatuses: readonly (readonly [number, string])[],
): string {
  const lines = [
    `.TH MEMSLOTS 1 "" "kvm\\-memslots ${plain(version)}" "User Commands"`,
    '.SH NAME',
    'memslots \\- memory slots of KVM guests: change, measure and study them',
    '.SH SYNOPSIS',
    '.B memslots',
    '\\fICOMMAND\\fR [\\fIOPTION\\fR ...]',
    '.br',
    '.B memslots',
    '\\-\\-help | \\-\\-version | \\-\\-man',
    '.SH DESCRIPTION',
    'A KVM guest sees its memory through memory slots, which KVM can neither resize, split nor merge in place.',
    'memslots shows what that does to running guests, and how to update slots without a guest ever seeing a hole.',
    '.PP',
    'With \\fB\\-\\-json\\fR, standard output holds only JSON. Numbers take decimal or 0x\\-prefixed hexadecimal form.',
    '.SH COMMANDS',
    ...commands.flatMap(commandLines),
    '.SH EXIT STATUS',
    ...exitStatuses.flatMap(([status, meaning]) => ['.TP', `.B ${status}`, plain(meaning)]),
    '.SH ENVIRONMENT',
    '.TP',
    '.B NO_COLOR',
    'If set and not empty, nothing is coloured. Without it, only terminals get colours.',
    '.TP',
    '.B MEMSLOTS_CORE',
    'The build of the core that plans: native or wasm. By default native on real KVM, wasm on the simulated one.',
    '.SH FILES',
    '.TP',
    '.I /dev/kvm',
    'Real KVM; memslots doctor tells what is wrong with it.',
  ];
  return `${lines.join('\n')}\n`;
}
