import { type InlineTrace, withTrace } from '../core/page-document.js';
import { readTrace } from '../trace/index.js';
import { App } from './app.js';
import { button, element } from './element.js';

// Before anything changes it: what an export starts from.
const pristine = `<!doctype html>\n${document.documentElement.outerHTML}`;

/** Milliseconds before a live trace that ended is asked for again. */
const reconnectInterval = 500;

/** A recording in view, to be exported again. */
interface Opened {
  readonly name: string;
  readonly bytes: Blob;
}

const app = new App(document.getElementById('viewer')!);
let opened: Opened | undefined;

const exportButton = button('Export', () => void exportPage(), 'Export as one HTML file');
exportButton.disabled = true;
const picker = element('input', { attributes: { type: 'file', hidden: '' } });
picker.addEventListener('change', () => {
  const [file] = picker.files ?? [];
  if (file !== undefined) void openFile(file.name, file);
});
app.actions.append(
  button('Open…', () => picker.click()),
  exportButton,
  picker,
);
app.empty.append(
  element('h2', { text: 'What does a guest see while its memory is changed?' }),
  element('p', {
    text: 'KVM can’t resize, split or merge a memory slot: it is deleted, and created anew. In between, a running vCPU finds a hole where its memory was. See it happen, or drop a log here to see where it did.',
  }),
  element('div', {
    class: 'buttons',
    children: [button('Try it', () => app.tabs.show(1)), button('Open a log…', () => picker.click())],
  }),
  element('p', {
    class: 'mode',
    text: 'A log is QEMU’s trace of kvm_set_user_memory, strace of a VMM’s ioctls, the output of QEMU’s info mtree -f, or one of this program’s own; plain or gzip. Nothing leaves your computer.',
  }),
);

async function openFile(name: string, bytes: Blob): Promise<void> {
  opened = { name, bytes };
  app.simulation.log = bytes;
  exportButton.disabled = false;
  await app.open(readTrace(bytes.stream()), name);
  app.markReady();
}

async function exportPage(): Promise<void> {
  const bytes = opened?.bytes ?? app.recording.liveLog;
  if (bytes === undefined) return;
  const name = opened?.name ?? 'live';
  const packed = await new Response(await compressed(bytes)).arrayBuffer();
  const page = withTrace(pristine, { name, data: base64(new Uint8Array(packed)) });
  const url = URL.createObjectURL(new Blob([page], { type: 'text/html' }));
  const link = element('a', { attributes: { href: url, download: `${name.replace(/[^\w.-]/g, '_')}.html` } });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** `bytes` compressed with gzip; as they are, if they begin as gzip does. */
async function compressed(bytes: Blob): Promise<ReadableStream<Uint8Array>> {
  const [first, second] = new Uint8Array(await bytes.slice(0, 2).arrayBuffer());
  if (first === 0x1f && second === 0x8b) return bytes.stream();
  return bytes.stream().pipeThrough(new CompressionStream('gzip'));
}

function base64(bytes: Uint8Array): string {
  let binary = '';
  for (let at = 0; at < bytes.length; at += 0x8000) binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(binary);
}

function listenForFiles(): void {
  const root = document.documentElement;
  addEventListener('dragover', (event) => {
    event.preventDefault();
    app.root.classList.add('dropping');
  });
  root.addEventListener('dragleave', (event) => {
    if (event.relatedTarget === null) app.root.classList.remove('dropping');
  });
  addEventListener('drop', (event) => {
    event.preventDefault();
    app.root.classList.remove('dropping');
    const [file] = event.dataTransfer?.files ?? [];
    if (file !== undefined) void openFile(file.name, file);
  });
}

/** What the server has to show: its token stands in the address, where it is sent to nobody. */
async function openServed(token: string): Promise<void> {
  const headers = { authorization: `Bearer ${token}` };
  for (;;) {
    const response = await fetch('/trace', { headers }).catch(() => undefined);
    if (response === undefined) {
      app.tell('The server has ended; what it told stays.');
      return;
    }
    if (!response.ok || response.body === null) {
      app.tell(`The server refused: ${response.status} ${await response.text()}`);
      return;
    }
    const name = decodeURIComponent(response.headers.get('x-trace-name') ?? 'trace');
    if (response.headers.get('x-trace-live') === null) {
      await openFile(name, await response.blob());
      return;
    }
    app.markReady();
    const begun = () => {
      exportButton.disabled = false;
    };
    if (!(await app.follow(readTrace(response.body, { lenient: true }), name, begun))) return;
    // Something else begins, or the server has ended: then the next fetch fails, and says so.
    await new Promise((resolve) => setTimeout(resolve, reconnectInterval));
  }
}

async function start(): Promise<void> {
  listenForFiles();
  const inline = JSON.parse(document.getElementById('trace')!.textContent ?? 'null') as InlineTrace | null;
  const token = new URLSearchParams(location.hash.slice(1)).get('token');
  if (inline !== null) {
    const bytes = Uint8Array.from(atob(inline.data), (character) => character.charCodeAt(0));
    await openFile(inline.name, new Blob([bytes]));
  } else if (token !== null) {
    await openServed(token);
  }
  app.markReady();
}

start().catch((error: unknown) => app.tell(error instanceof Error ? error.message : String(error)));
