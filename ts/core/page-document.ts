/**
 * The page is one HTML document with everything in it. A recording, if one is inlined, is the text of its element
 * `trace`: JSON of an {@link InlineTrace}. The server and the page itself put it there with the same function.
 */

/** A recording inside a document. */
export interface InlineTrace {
  /** What it is called, for people. */
  readonly name: string;
  /** The log, compressed with gzip, in base64. */
  readonly data: string;
}

const empty = '<script type="application/json" id="trace">null</script>';
const begin = '<script type="application/json" id="trace">';
const end = '</script>';
const closed = "connect-src 'none'";
const open = "connect-src 'self'";

/** `document` with `trace` inlined, and allowed no network. */
export function withTrace(document: string, trace: InlineTrace): string {
  const at = document.indexOf(begin);
  const after = document.indexOf(end, at);
  if (at < 0 || after < 0) throw new Error('the document is not the viewer page');
  // No `<`, so that no name can end the element.
  const json = JSON.stringify(trace).replaceAll('<', '\\u003c');
  return document.slice(0, at).replace(open, closed) + begin + json + document.slice(after);
}

/** `document` without a recording, allowed to reach the server it comes from. */
export function withServer(document: string): string {
  if (!document.includes(empty) || !document.includes(closed)) throw new Error('the document is not the viewer page');
  return document.replace(closed, open);
}
