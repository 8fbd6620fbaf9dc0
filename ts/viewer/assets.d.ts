/** What bundle.mjs puts in the place of these imports. */

/** The core built for shared memory. */
declare module 'memslots-core-shared' {
  const bytes: Uint8Array<ArrayBuffer>;
  export default bytes;
}

/** The style sheet, as text. */
declare module 'memslots-style' {
  const text: string;
  export default text;
}

/** The script of the simulation's worker, as text of a classic script. */
declare module 'memslots-simulation-worker' {
  const text: string;
  export default text;
}

/** The script of a vCPU's worker, as text of a classic script. */
declare module 'memslots-vcpu-worker' {
  const text: string;
  export default text;
}
