import { describe, expect, test } from 'vitest';
import { compareRanges, formatTextRange, formatViews, readViews } from '../../ts/memory/flat-text.js';
import { flatten, viewsOf } from '../../ts/memory/flatten.js';

const end = 'ffffffffffffffff';

/** A tree in QEMU's words: each line as indentation level, first and last address, priority, kind and the rest. */
function line(
  level: number,
  first: number | string,
  last: number | string,
  priority: number,
  kind: string,
  rest: string,
) {
  const hex = (value: number | string) => (typeof value === 'string' ? value : value.toString(16)).padStart(16, '0');
  return `${'  '.repeat(level + 1)}${hex(first)}-${hex(last)} (prio ${priority}, ${kind}): ${rest}`;
}

function root(...lines: string[]): string {
  return ['address-space: memory', line(0, 0, end, 0, 'i/o', 'system'), ...lines, '', ''].join('\n');
}

function shown(text: string, space = 'memory'): string[] {
  return flatten(text)
    .find(({ key }) => key === space)!
    .ranges.map(formatTextRange)
    .map((range) => range.replaceAll(/\b0{8}/g, ''));
}

function failure(text: string): string {
  try {
    flatten(text);
  } catch (error) {
    return (error as Error).message;
  }
  return 'no failure';
}

describe('the text of a memory tree', () => {
  test('keeps names with spaces, colons, parentheses and at signs', () => {
    const names = ['a b', 'dev: x', 'x (prio 1, ram): y', 'at @home', 'v @0000000000000001', '(qemu)', 'alias'];
    const lines = names.map((name, index) => line(1, index * 0x1000, index * 0x1000 + 0xfff, 0, 'ram', name));
    expect(flatten(root(...lines))[0]!.ranges.map(({ region }) => region)).toEqual(names);
  });

  test('is the same with CR LF, with owners, and with prompts, log lines and flat views around it', () => {
    const tree = root(line(1, 0, 0xfff, 0, 'ram', 'x'), line(1, 0x2000, 0x2fff, 0, 'i/o', 'y'));
    const expected = ['00000000-00000fff (prio 0, ram): x', '00002000-00002fff (prio 0, i/o): y'];
    expect(shown(tree)).toEqual(expected);
    expect(shown(tree.replaceAll('\n', '\r\n'))).toEqual(expected);
    expect(
      shown(tree.replaceAll(': x', ': x owner:{dev path=/machine/unattached/device[3]} parent:{obj path=/m}')),
    ).toEqual(expected);
    const noise = 'QEMU 10.0.2 monitor\n(qemu) info mtree -f\nFlatView #0\n AS "q", root: q\n  0000 junk\n\n';
    expect(shown(`${noise}(qemu) info mtree\n${tree}(qemu) quit\n`)).toEqual(expected);
    expect(shown(`(qemu) ${tree}`)).toEqual(expected);
    const log = 'qemu-system-x86_64: warning: something\n2025-07-21T18:43:28.089797Z qemu-system-x86_64: oh\n';
    expect(shown(tree.replace('  0', `${log}  0`))).toEqual(expected);
  });

  test('may lack the final line end', () => {
    expect(shown(root(line(1, 0, 0xfff, 0, 'ram', 'x')).trimEnd())).toEqual(['00000000-00000fff (prio 0, ram): x']);
  });

  test('gives every kind its word, unknown ones too, and marks what is non-volatile', () => {
    const kinds = ['ram', 'rom', 'ramd', 'romd', 'i/o', 'nv-ram', 'nv-ramd', 'quantum', 'nv-quantum'];
    const lines = kinds.map((kind, index) => line(1, index * 0x1000, index * 0x1000 + 0xfff, 0, kind, 'x'));
    expect(flatten(root(...lines))[0]!.ranges.map(({ kind }) => kind)).toEqual(kinds);
  });

  test('hides disabled regions and what is in them', () => {
    const lines = [
      line(1, 0, 0xffff, 0, 'ram', 'x'),
      line(1, 0x1000, 0x1fff, 1, 'i/o', 'off [disabled]'),
      line(2, 0x1000, 0x10ff, 0, 'i/o', 'inside'),
    ];
    expect(shown(root(...lines))).toEqual(['00000000-0000ffff (prio 0, ram): x']);
  });

  test('hides what is below a disabled region whose own line is missing', () => {
    const below = [line(2, 0x10, 0x1f, 0, 'i/o', 'hidden'), line(3, 0x10, 0x10, 0, 'i/o', 'too')];
    const whole = ['00000000-0000ffff (prio -1, ram): x', '00020000-00020fff (prio 0, i/o): y'];
    const [x, y] = [line(1, 0, 0xffff, -1, 'ram', 'x'), line(1, 0x20000, 0x20fff, 0, 'i/o', 'y')];
    expect(shown(root(...below, x, y))).toEqual(whole);
    expect(shown(root(x, line(3, 0x10, 0x1f, 0, 'i/o', 'hidden'), y))).toEqual(whole);
    // These look like children of the line above, but that one's would be in order, or inside it.
    expect(shown(root(x, y, line(2, 0x30000, 0x30fff, 0, 'ram', 'hidden')))).toEqual(whole);
    const inner = [line(2, 0x20010, 0x20013, 0, 'i/o', 'real'), line(2, 0x20000, 0x20003, 0, 'i/o', 'hidden')];
    expect(shown(root(x, y, ...inner))).toEqual([whole[0], '00020010-00020013 (prio 0, i/o): real']);
  });

  test('takes children below an alias for those of a disabled region after it', () => {
    const alias = line(1, 0, 0xfff, 1, 'ram', 'alias a @ram 0000000000000000-0000000000000fff');
    const text = root(alias, line(2, 0x100, 0x1ff, 0, 'i/o', 'hidden'));
    const target = `memory-region: ram\n${line(0, 0, 0xffff, 0, 'ram', 'ram')}\n\n`;
    expect(shown(text + target)).toEqual(['00000000-00000fff (prio 0, ram): ram']);
  });

  test('shows nothing where an alias leads to a disabled region, or the root itself is one', () => {
    const alias = line(1, 0, 0xfff, 1, 'i/o', 'alias smram @smram 0000000000000000-0000000000000fff');
    const text = `${root(alias)}memory-region: smram\n${line(1, 0, 0xfff, 0, 'ram', 'x')}\n\naddress-space: off\n\n`;
    expect(flatten(text).map(({ key, ranges }) => [key, ranges.length])).toEqual([
      ['memory', 0],
      ['off', 0],
    ]);
  });

  test('lets several address spaces share a tree, and others have the same name', () => {
    const tree = root(line(1, 0, 0xfff, 0, 'ram', 'x'));
    const other = `address-space: cpu\naddress-space: cpu\n${line(0, 0, 0xfff, 0, 'rom', 'rom')}\n\n`;
    const spaces = flatten(`address-space: first\n${tree}${other}`);
    expect(spaces.map(({ key }) => key)).toEqual(['first', 'memory', 'cpu', 'cpu #2']);
    expect(viewsOf(spaces).map(({ addressSpaces }) => addressSpaces.length)).toEqual([2, 2]);
  });

  test('resolves names that several regions have by kind, size, and what is where the alias looks', () => {
    const alias = (first: number, last: number, kind: string, name: string) =>
      line(
        1,
        first,
        last,
        1,
        kind,
        `alias w @${name} ${first.toString(16).padStart(16, '0')}-${last.toString(16).padStart(16, '0')}`,
      );
    const bus = (at: number, name: string) =>
      `memory-region: bus\n${line(0, 0, end, 0, 'i/o', 'bus')}\n${line(1, at, at + 0xfff, 1, 'i/o', name)}\n\n`;
    const text = root(
      alias(0x1000, 0x1fff, 'i/o', 'bus'),
      alias(0x8000, 0x8fff, 'i/o', 'bus'),
      alias(0x9000, 0x9fff, 'rom', 'bus'),
    );
    const rom = `memory-region: bus\n${line(0, 0, 0xffff, 0, 'rom', 'bus')}\n\n`;
    expect(shown(`${text}${bus(0x8000, 'second')}${bus(0x1000, 'first')}${rom}`)).toEqual([
      '00001000-00001fff (prio 1, i/o): first',
      '00008000-00008fff (prio 1, i/o): second',
      '00009000-00009fff (prio 0, rom): bus @00009000',
    ]);
  });

  test('resolves a target whose name holds an at sign', () => {
    const alias = line(1, 0, 0xfff, 0, 'ram', 'alias a @b @c 0000000000001000-0000000000001fff');
    const target = (name: string) => `memory-region: ${name}\n${line(0, 0, 0xffff, 0, 'ram', name)}\n\n`;
    expect(shown(root(alias) + target('c'))).toEqual(['00000000-00000fff (prio 0, ram): c @00001000']);
    expect(shown(root(alias) + target('b @c'))).toEqual(['00000000-00000fff (prio 0, ram): b @c @00001000']);
  });

  test('joins what two aliases show of one region, wherever its line is', () => {
    const lines = [
      line(1, 0, 0xfff, 0, 'ram', 'alias low @ram 0000000000003000-0000000000003fff'),
      line(1, 0x1000, 0x1fff, 0, 'ram', 'alias high @ram 0000000000004000-0000000000004fff'),
      line(1, 0x10000, 0x1ffff, 0, 'ram', 'ram'),
    ];
    const block = `memory-region: ram\n${line(0, 0x10000, 0x1ffff, 0, 'ram', 'ram')}\n\n`;
    expect(shown(root(...lines) + block)[0]).toBe('00000000-00001fff (prio 0, ram): ram @00003000');
  });

  test('lets the first printed of equals at one address show, and of others the one at the higher address', () => {
    const lines = [
      line(1, 0, 0xfff, 0, 'ram', 'newest'),
      line(1, 0, 0x1fff, 0, 'ram', 'older'),
      line(1, 0x1800, 0x27ff, 0, 'ram', 'higher'),
    ];
    expect(shown(root(...lines))).toEqual([
      '00000000-00000fff (prio 0, ram): newest',
      '00001000-000017ff (prio 0, ram): older @00001000',
      '00001800-000027ff (prio 0, ram): higher',
    ]);
  });

  test('takes an alias of one byte for the empty one that QEMU prints so, and a port of one byte as it is', () => {
    const alias = line(1, 0, 0, 1, 'ram', 'alias none @ram 0000000000000000-0000000000000000');
    const target = `memory-region: ram\n${line(0, 0, 0xffff, 0, 'ram', 'ram')}\n\n`;
    const text = root(alias, line(1, 0x61, 0x61, 0, 'i/o', 'pcspk')) + target;
    expect(shown(text)).toEqual(['00000061-00000061 (prio 0, i/o): pcspk']);
  });

  test('is exact up to 2^64, and reads a region that wraps round', () => {
    const lines = [
      line(1, 'fffffff0f0000000', 'fffffff0f000ffff', 0, 'rom', 'firmware'),
      line(1, 'ffffffffffffffff', end, 0, 'i/o', 'last'),
    ];
    const overflow = `    [DETECTED OVERFLOW!] fffffffffffff000-0000000000000fff (prio -1, ram): big`;
    const [firmware, big, last] = flatten(root(...lines, overflow))[0]!.ranges;
    expect(firmware).toMatchObject({ gpa: 0xfffffff0f0000000n, size: 0x10000 });
    expect(big).toMatchObject({ gpa: 0xfffffffffffff000n, size: 0xfff, region: 'big' });
    expect(last).toMatchObject({ gpa: 0xffffffffffffffffn, size: 1 });
  });

  test('lets the container of hot-plugged memory stand for the one thing in it, as QEMU does', () => {
    const one = `address-space: dm\n${line(0, 0x100000000, 0x1ffffffff, 0, 'i/o', 'dm')}\n${line(1, 0x100000000, 0x107ffffff, 0, 'ram', 'd0')}\n\n`;
    expect(flatten(one)[0]!.ranges[0]).toMatchObject({ gpa: 0, region: 'd0' });
    const two = one.replace('\n\n', `\n${line(1, 0x108000000, 0x10fffffff, 0, 'ram', 'd1')}\n\n`);
    expect(flatten(two)[0]!.ranges[0]).toMatchObject({ gpa: 0x100000000, region: 'd0' });
  });
});

describe('malformed text is refused with line number and content:', () => {
  const good = line(1, 0, 0xfff, 0, 'ram', 'x');
  test.each([
    [
      'a line cut off',
      root(good, good.slice(0, 30)),
      `line 4: not a region of a memory tree, or only part of one: '${good.slice(0, 30)}'`,
    ],
    ['an address with a wrong digit', root(good.replace('0fff', '0fgf')), 'line 3: not a region'],
    [
      'a region that ends before it starts',
      root(line(1, 0x2000, 0x1000, 0, 'ram', 'x')),
      'line 3: a region that ends before it starts',
    ],
    ['odd indentation', root(` ${good}`), 'line 3: indented by an odd number of spaces'],
    ['a tab', root(`\t${good}`), 'line 3: not a region'],
    [
      'words within a tree',
      root('Segmentation fault'),
      "line 3: not a region of a memory tree, or only part of one: 'Segmentation fault'",
    ],
    ['a second root', root(line(0, 0, 0xfff, 0, 'ram', 'x')), 'line 3: a second outermost region'],
    ['a tree without heading', `${good}\n`, "line 1: a region without an 'address-space:'"],
    [
      'a heading without tree',
      'address-space: a\nmemory-region: b\n',
      "line 2: the tree of 'a' is missing before this line: 'memory-region: b'",
    ],
    ['an end within a heading', `${root(good)}memory-reg`, "line 5: the text ends within this line: 'memory-reg'"],
    ['an end after the heading', 'address-space: memory\n', "line 1: the text ends before the tree of 'memory'"],
    ['an empty text', '', 'line 0: the text ends without'],
    ['a flat view', 'FlatView #0\n AS "memory", root: system\n\n', "(a flat view is what 'info mtree -f' prints"],
    [
      'an alias cut off',
      root(line(1, 0, 0xfff, 0, 'ram', 'alias x @pc.r')),
      'line 3: an alias without its target and range',
    ],
    [
      'an alias of another size',
      root(line(1, 0, 0xfff, 0, 'ram', 'alias x @y 0000000000000000-0000000000000ffe')),
      'line 3: an alias whose range',
    ],
    [
      'an alias without target',
      root(line(1, 0, 0xfff, 0, 'ram', 'alias x @pc.ram 0000000000000000-0000000000000fff')),
      "line 3: the text has no region 'pc.ram'",
    ],
  ])('%s', (_, text, message) => {
    expect(failure(text)).toContain(message);
  });

  test('a region that contains itself, naming the chain', () => {
    const alias = line(1, 0, 0xfff, 0, 'i/o', 'alias again @system 0000000000000000-0000000000000fff');
    const message = failure(
      `${root(alias)}memory-region: system\n${line(0, 0, end, 0, 'i/o', 'system')}\n${alias}\n\n`,
    );
    expect(message).toMatch(/^line 3: .*alias 'again' > 'system' > alias 'again'/);
  });

  test('aliases that show each other, naming the chain', () => {
    const alias = (name: string, of: string) =>
      line(0, 0, 0xfff, 0, 'i/o', `alias ${name} @${of} 0000000000000000-0000000000000fff`);
    const text = `address-space: a\n${alias('a', 'b')}\n\nmemory-region: a\n${alias('a', 'b')}\n\nmemory-region: b\n${alias('b', 'a')}\n\n`;
    expect(failure(text)).toMatch(/^line 2: an alias that shows itself, alias 'a' > alias 'b' > alias 'a'/);
  });
});

describe('the text of flat views', () => {
  test('is read back from what is printed', () => {
    const spaces = flatten(root(line(1, 0, 0xfff, 0, 'ram', 'x y'), line(1, 0x2000, 0x2fff, 3, 'nv-ram', 'z')));
    const views = viewsOf(spaces);
    expect(readViews(formatViews(views).join('\r\n'))).toEqual(views);
  });

  test('tells KVM marks and offsets from names', () => {
    const text =
      'FlatView #3\n AS "a "b"", root: r: s\n Root memory region: r: s\n  0000000000001000-0000000000001fff (prio -1, romd): k @v @0000000000000010 KVM\n\n';
    const [view] = readViews(text);
    expect(view).toEqual({
      addressSpaces: [{ name: 'a "b"', root: 'r: s' }],
      root: 'r: s',
      ranges: [{ gpa: 0x1000, size: 0x1000, priority: -1, kind: 'romd', region: 'k @v', offset: 16, kvm: true }],
    });
  });

  test('is refused with the line that is malformed', () => {
    expect(() => readViews('FlatView #0\n  0000000000001000-00000000\n')).toThrow(
      /^line 2: not a range of a flat view/,
    );
  });

  test('is compared by what a guest sees, not by priority or KVM mark', () => {
    const [view] = readViews('FlatView #0\n  0000000000001000-0000000000001fff (prio 0, ram): k KVM\n');
    const [range] = view!.ranges;
    expect(compareRanges([range!], [{ ...range!, priority: 7, kvm: false }])).toEqual({ removed: [], added: [] });
    const moved = { ...range!, gpa: 0x3000 };
    expect(compareRanges([range!], [moved])).toEqual({ removed: [range], added: [moved] });
  });
});
