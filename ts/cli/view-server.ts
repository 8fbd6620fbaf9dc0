import { randomBytes, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream';

/** What the page is to show, read anew for each page that asks. */
export interface ServedTrace {
  readonly name: string;
  /** It goes on while it is read. */
  readonly live: boolean;
  open(): Readable;
}

/** A server of one page and at most one trace, reached from this computer alone. */
export interface ViewServer {
  /** The page's address, with the token that the trace takes. */
  readonly url: string;
  readonly port: number;
  readonly token: string;
  close(): Promise<void>;
}

const address = '127.0.0.1';

/**
 * What every answer says. The first three isolate the page, which shared memory takes; the page's own policy is in its
 * document, but only a header can forbid others to frame it.
 */
const headers = {
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-embedder-policy': 'require-corp',
  'cross-origin-resource-policy': 'same-origin',
  'content-security-policy': "frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cache-control': 'no-store',
} as const;

/** A request that isn't answered, and why. */
class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/**
 * Serves `page` at `/` and `trace`, if there is one, at `/trace`, on the loopback interface and a free port.
 *
 * Refused: every other path (nothing is read from disk by name), methods other than GET and HEAD, any body, a Host that
 * isn't this server (DNS rebinding), an Origin that isn't (other pages), and the trace without the token.
 */
export async function startViewServer(page: string, trace: ServedTrace | undefined): Promise<ViewServer> {
  const token = randomBytes(24).toString('base64url');
  const server = createServer({ maxHeaderSize: 8192, requestTimeout: 10_000 }, (request, response) => {
    try {
      answer(request, response, page, trace, token);
    } catch (error) {
      refuse(response, error instanceof Refusal ? error : new Refusal(500, 'internal error'));
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, address, resolve);
  });
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://${address}:${port}/${trace === undefined ? '' : `#token=${token}`}`,
    port,
    token,
    close: () => close(server),
  };
}

function close(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}

function answer(
  request: IncomingMessage,
  response: ServerResponse,
  page: string,
  trace: ServedTrace | undefined,
  token: string,
): void {
  const { port } = request.socket.address() as AddressInfo;
  const names = [`${address}:${port}`, `localhost:${port}`];
  if (!names.includes(request.headers.host ?? '')) throw new Refusal(403, 'this server has another name');
  const { origin } = request.headers;
  if (origin !== undefined && !names.some((name) => origin === `http://${name}`)) {
    throw new Refusal(403, 'requests from other pages are refused');
  }
  if (request.method !== 'GET' && request.method !== 'HEAD') throw new Refusal(405, 'only GET and HEAD are answered');
  if (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) !== 0) {
    throw new Refusal(413, 'this server takes no uploads: the page reads files by itself');
  }
  if (request.url === '/') {
    response.writeHead(200, { ...headers, 'content-type': 'text/html; charset=utf-8' });
    response.end(request.method === 'HEAD' ? undefined : page);
    return;
  }
  if (request.url !== '/trace') throw new Refusal(404, 'there is nothing here');
  if (!holdsToken(request.headers.authorization, token)) throw new Refusal(401, 'the trace takes the token');
  if (trace === undefined) throw new Refusal(404, 'no trace was given');
  response.writeHead(200, {
    ...headers,
    'content-type': 'application/octet-stream',
    'x-trace-name': encodeURIComponent(trace.name),
    ...(trace.live ? { 'x-trace-live': 'yes' } : {}),
  });
  if (request.method === 'HEAD') {
    response.end();
    return;
  }
  // Of a live trace, the first byte may be long in coming.
  response.flushHeaders();
  pipeline(trace.open(), response, () => {});
}

function holdsToken(authorization: string | undefined, token: string): boolean {
  const given = Buffer.from(authorization ?? '');
  const wanted = Buffer.from(`Bearer ${token}`);
  return given.length === wanted.length && timingSafeEqual(given, wanted);
}

/** Says no, and reads nothing more from whoever asked. */
function refuse(response: ServerResponse, { status, message }: Refusal): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const body = `${message}\n`;
  response.writeHead(status, {
    ...headers,
    'content-type': 'text/plain; charset=utf-8',
    'content-length': Buffer.byteLength(body),
    connection: 'close',
  });
  response.end(body, () => response.socket?.destroy());
}
