import type { Report } from './report.js';
export function viewer(_report: Report): void {}
