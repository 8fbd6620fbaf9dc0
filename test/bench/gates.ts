import type { Report } from './report.js';
export function gates(_report: Report): void {}
