import load, { Session } from './seqzoo_web.js';

/** Loads the module and opens a backend: `cpu` or `webgpu`. In Node.js, pass the bytes of the module. */
export async function open(backend = 'cpu', wasm = undefined) {
  await load(wasm === undefined ? undefined : { module_or_path: wasm });
  return Session.open(backend);
}

export { Session };
