import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';

const blocks = [...readFileSync('README.md', 'utf8').matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code!);

describe('the README', () => {
  it('has examples that work when pasted', () => {
    expect(blocks.length).toBeGreaterThan(0);
    for (const code of blocks) {
      const out = execFileSync(process.execPath, ['--input-type=module', '-e', code], {
        encoding: 'utf8',
        timeout: 30_000,
      });
      expect(out).toMatch(/(kvm|simulated).*gpa: 917504/s);
    }
  });
});
