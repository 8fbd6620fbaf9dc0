import { takeCoverage } from 'node:v8';
import { afterAll } from 'vitest';

// vitest kills the processes that its tests ran in, and then Node writes nothing down.
afterAll(() => takeCoverage());
