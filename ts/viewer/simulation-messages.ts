import type { Operation } from '../kvm/planner.js';
import type { Reshape } from '../replay/reshaper.js';

/** How vCPUs run: in threads of their own, or taking turns with the owner in its thread. */
export type SimulationMode = 'threads' | 'stepper';
export type Updates = 'naive' | 'atomic';

/** What the page tells the simulation's worker. The first message is `start`, and there is but one. */
export type SimulationOrder =
  | {
      readonly kind: 'start';
      readonly mode: SimulationMode;
      /** 1 to 8. */
      readonly vcpus: number;
      /** A log whose transactions are to be played, by `step` and `storm`; without one, the region is reshaped. */
      readonly log: Blob | undefined;
    }
  | { readonly kind: 'updates'; readonly updates: Updates }
  | { readonly kind: 'make'; readonly reshape: Reshape }
  | { readonly kind: 'step' }
  /** Changes as fast as they go, until it is turned off. */
  | { readonly kind: 'storm'; readonly on: boolean };

/** A slot as the page shows it. Bytes. */
export interface ShownSlot {
  readonly addressSpace: number;
  readonly id: number;
  readonly gpa: number;
  readonly size: number;
  readonly host: number;
  readonly flags: number;
}

/** What has happened under one way of updating. */
export interface UpdateFigures {
  readonly commits: number;
  readonly windows: number;
  readonly reads: number;
  readonly wrongValues: number;
}

/** One commit, with all that it takes to draw it. */
export interface ShownCommit {
  readonly before: readonly ShownSlot[];
  readonly calls: readonly Pick<Operation, 'kind' | 'slot'>[];
  /** Length of the inhibit window, in microseconds; undefined without one. */
  readonly window: number | undefined;
}

/** What the worker tells the page, several times a second. */
export type SimulationReport =
  | {
      readonly kind: 'state';
      readonly updates: Updates;
      readonly figures: Readonly<Record<Updates, UpdateFigures>>;
      readonly vcpus: readonly { readonly reads: number; readonly wrongValues: number }[];
      readonly commit: ShownCommit;
      /** Of the log's transactions: the next, and how many there are. */
      readonly position: { readonly next: number; readonly length: number } | undefined;
      readonly storm: boolean;
      /** The changes of the region that were ever made, the latest last. */
      readonly made: readonly Reshape[];
    }
  | { readonly kind: 'failed'; readonly message: string };
