import load, { Session } from './seqzoo_web.js';

/** In Node.js, whose `fetch` reads no files; elsewhere the module finds its own bytes. */
async function bytes() {
  if (typeof process !== 'object' || process.versions?.node === undefined) return undefined;
  const { readFile } = await import(/* webpackIgnore: true */ /* @vite-ignore */ 'node:fs/promises');
  return readFile(new URL('./seqzoo_web_bg.wasm', import.meta.url));
}

/** Loads the module and opens a backend: `cpu` or `webgpu`. */
export async function open(backend = 'cpu', wasm = undefined) {
  const source = wasm ?? (await bytes());
  await load(source === undefined ? undefined : { module_or_path: source });
  return Session.open(backend);
}

export { Session };
