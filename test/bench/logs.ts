import type { Report } from './report.js';
export function logs(_report: Report): void {}
