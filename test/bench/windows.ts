import type { Report } from './report.js';
export function windows(_report: Report): void {}
