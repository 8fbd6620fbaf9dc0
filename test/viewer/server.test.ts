import { request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import { connect } from 'node:net';
import { networkInterfaces } from 'node:os';
import { Readable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startViewServer, type ViewServer } from '../../ts/cli/view-server.js';

const page = '<!doctype html><title>page</title>';
const secret = 'kvm_set_user_memory Slot#0';

let server: ViewServer;

beforeAll(async () => {
  server = await startViewServer(page, { name: 'a<b>.log', live: false, open: () => Readable.from([secret]) });
});

afterAll(() => server.close());

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

function ask(path: string, headers: Record<string, string> = {}, method = 'GET'): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const asked = httpRequest({ host: '127.0.0.1', port: server.port, path, method, headers }, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        body += chunk;
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }));
    });
    asked.on('error', reject);
    asked.end();
  });
}

/** Sends bytes as they are; resolves to all that comes back until the connection ends, and how much could be sent. */
function send(head: string, body: (write: (chunk: string) => boolean) => void = () => {}): Promise<{ text: string }> {
  return new Promise((resolve) => {
    const socket = connect(server.port, '127.0.0.1');
    let text = '';
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => {
      text += chunk;
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve({ text }));
    socket.write(head.replaceAll('\n', '\r\n'));
    body((chunk) => socket.write(chunk));
  });
}

const token = () => ({ authorization: `Bearer ${server.token}` });

describe('the view server', () => {
  test('serves the page, isolated and framed by nobody', async () => {
    const { status, headers, body } = await ask('/');
    expect([status, body]).toEqual([200, page]);
    expect(headers).toMatchObject({
      'cross-origin-opener-policy': 'same-origin',
      'cross-origin-embedder-policy': 'require-corp',
      'cross-origin-resource-policy': 'same-origin',
      'content-security-policy': "frame-ancestors 'none'",
      'x-content-type-options': 'nosniff',
    });
    expect(headers['access-control-allow-origin']).toBeUndefined();
  });

  test('gives the trace to whoever has the token, and to nobody else', async () => {
    expect(await ask('/trace', token())).toMatchObject({ status: 200, body: secret });
    const wrong = 'A'.repeat(server.token.length);
    for (const headers of [{}, { authorization: 'Bearer ' }, { authorization: `Bearer ${wrong}` }]) {
      const { status, body } = await ask('/trace', headers);
      expect(status).toBe(401);
      expect(body).not.toContain(secret);
    }
    expect((await ask(`/trace?token=${server.token}`)).status).toBe(404);
    expect(server.url).toBe(`http://127.0.0.1:${server.port}/#token=${server.token}`);
  });

  test('refuses a request from another origin, even with the token', async () => {
    for (const origin of ['http://evil.example', 'null', `http://127.0.0.1:${server.port + 1}`, 'http://localhost']) {
      for (const path of ['/', '/trace']) {
        expect((await ask(path, { ...token(), origin })).status).toBe(403);
      }
    }
    expect((await ask('/trace', { ...token(), origin: `http://127.0.0.1:${server.port}` })).status).toBe(200);
  });

  test('refuses a name that is not its own, as after DNS rebinding', async () => {
    for (const host of ['evil.example', `evil.example:${server.port}`, '127.0.0.1', `127.0.0.1:${server.port}.x`]) {
      expect((await ask('/trace', { ...token(), host })).status, host).not.toBe(200);
    }
    expect((await ask('/', { host: `localhost:${server.port}` })).status).toBe(200);
    expect((await send('GET / HTTP/1.0\n\n')).text).toMatch(/^HTTP\/1.1 403 /);
  });

  test('serves nothing by path: no `..`, in any spelling', async () => {
    const paths = [
      '/../package.json',
      '/..%2f..%2fetc/passwd',
      '/%2e%2e/etc/passwd',
      '//etc/passwd',
      '/trace/../../etc/passwd',
      '/..\\..\\etc',
      '/index.html',
      `http://127.0.0.1:${server.port}/etc/passwd`,
    ];
    for (const path of paths) expect((await ask(path, token())).status, path).toBe(404);
  });

  test('refuses an upload of any size, and stops reading it', async () => {
    const host = `Host: 127.0.0.1:${server.port}`;
    const declared = await send(`POST /trace HTTP/1.1\n${host}\nContent-Length: 100000000000\n\n`, (write) => {
      for (let piece = 0; piece < 64 && write('x'.repeat(65_536)); piece++);
    });
    expect(declared.text).toMatch(/^HTTP\/1.1 405 /);
    const bodied = await send(`GET / HTTP/1.1\n${host}\nContent-Length: 5000000000\n\n`, (write) => void write('x'));
    expect(bodied.text).toMatch(/^HTTP\/1.1 413 /);
    const chunked = await send(`GET / HTTP/1.1\n${host}\nTransfer-Encoding: chunked\n\nffffffff\n`);
    expect(chunked.text).toMatch(/^HTTP\/1.1 413 /);
    const head = await send(`GET / HTTP/1.1\n${host}\nX-Long: ${'x'.repeat(20_000)}\n\n`);
    expect(head.text).toMatch(/^HTTP\/1.1 431 /);
    expect((await ask('/')).status).toBe(200);
  });

  test('answers on the loopback interface alone', async (context) => {
    const outside = Object.values(networkInterfaces())
      .flatMap((addresses) => addresses ?? [])
      .find(({ internal, family }) => !internal && family === 'IPv4');
    if (outside === undefined) context.skip('this host has no other interface');
    const reached = await new Promise<boolean>((resolve) => {
      const socket = connect(server.port, outside!.address);
      socket.once('connect', () => resolve(true));
      socket.once('error', () => resolve(false));
    });
    expect(reached).toBe(false);
  });
});
