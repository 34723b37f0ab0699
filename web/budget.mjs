// Sizes of the built site as they travel, and the limits they must keep. Run by `cargo xtask web build`.
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join, relative } from 'node:path';
import { brotliCompressSync, gzipSync } from 'node:zlib';

const dist = new URL('./site/dist/', import.meta.url).pathname;
const files = (dir) =>
  readdirSync(dir).flatMap((name) => {
    const path = join(dir, name);
    return statSync(path).isDirectory() ? files(path) : [path];
  });

const rows = files(dist).map((path) => {
  const bytes = readFileSync(path);
  return {
    file: relative(dist, path),
    raw: bytes.length,
    gzip: gzipSync(bytes, { level: 9 }).length,
    brotli: brotliCompressSync(bytes).length,
  };
});
const kB = (n) => `${(n / 1000).toFixed(1)} kB`.padStart(11);
const line = (name, row) => console.log(`${name.padEnd(44)}${kB(row.raw)}${kB(row.gzip)}${kB(row.brotli)}`);
const sum = (some) => ({
  raw: some.reduce((n, row) => n + row.raw, 0),
  gzip: some.reduce((n, row) => n + row.gzip, 0),
  brotli: some.reduce((n, row) => n + row.brotli, 0),
});
console.log(`${'file'.padEnd(44)}${'raw'.padStart(11)}${'gzip'.padStart(11)}${'brotli'.padStart(11)}`);
rows.sort((a, b) => b.raw - a.raw).forEach((row) => line(row.file, row));

// Code and weights: everything but the pictures drawn before the engine is there, which are data of the page.
const code = sum(rows.filter((row) => /\.(js|css|html|wasm|safetensors)$/.test(row.file)));
// What the first picture needs: the page without engine and weights.
const first = sum(rows.filter((row) => !/\.(wasm|safetensors|map)$/.test(row.file) && !row.file.startsWith('pkg/')));
line('code and weights', code);
line('first picture', first);

const limits = [
  ['code and weights, brotli', code.brotli, 3e6],
  ['first picture, gzip', first.gzip, 2e6],
];
const over = limits.filter(([, size, limit]) => size > limit);
over.forEach(([name, size, limit]) => console.error(`${name}: ${kB(size).trim()} is over the limit of ${kB(limit).trim()}`));
process.exit(over.length > 0 ? 1 : 0);
