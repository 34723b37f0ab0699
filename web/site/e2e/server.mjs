// Serves a folder as a static host does: below a path, compressed, and a 404 for what is not there.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';
import { gzipSync } from 'node:zlib';

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.json': 'application/json',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
};

/** `{ url, sent, close }`; `sent` lists `{ path, bytes, at }` of everything served, as compressed. */
export async function serve(folder, prefix) {
  const cache = new Map();
  const sent = [];
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, 'http://x').pathname);
    if (!path.startsWith(prefix)) return response.writeHead(404).end();
    let file = normalize(path.slice(prefix.length));
    if (file === '.' || file === '') file = 'index.html';
    if (file.startsWith('..')) return response.writeHead(403).end();
    try {
      let packed = cache.get(file);
      if (packed === undefined) {
        packed = gzipSync(await readFile(join(folder, file)), { level: 9 });
        cache.set(file, packed);
      }
      sent.push({ path: file, bytes: packed.length, at: performance.now() });
      response.writeHead(200, {
        'content-type': TYPES[extname(file)] ?? 'application/octet-stream',
        'content-encoding': 'gzip',
        'content-length': packed.length,
      });
      response.end(packed);
    } catch {
      sent.push({ path: file, bytes: 0, at: performance.now(), missing: true });
      response.writeHead(404, { 'content-type': 'text/plain' }).end('not here');
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  return { url: `http://127.0.0.1:${port}${prefix}`, sent, close: () => server.close() };
}
