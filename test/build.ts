import { execFileSync } from 'node:child_process';

/** Workers run from built files, so the build has to be fresh whoever starts the tests. */
export default function setup(): void {
  execFileSync('make', ['--silent', 'build'], { stdio: 'inherit' });
}
