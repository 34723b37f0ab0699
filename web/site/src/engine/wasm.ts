// Fetches and starts the WebAssembly module that `cargo xtask web build` puts into `pkg/`.
import type { Backend, Engine, EngineInfo } from './types';

type Session = Omit<Engine, 'init'> & { info(): EngineInfo };

interface Module {
  default(options: { module_or_path: Response }): Promise<unknown>;
  Session: { open(backend: Backend): Promise<Session> };
}

/** Counts what arrives; a compressed transfer says its length only after decoding, so `total` is 0 then. */
async function counted(url: string, onProgress: (loaded: number, total: number) => void): Promise<Response> {
  const response = await fetch(url);
  if (!response.ok || response.body === null) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  const encoded = response.headers.get('content-encoding') !== null;
  const total = encoded ? 0 : Number(response.headers.get('content-length') ?? 0);
  let loaded = 0;
  const count = new TransformStream<Uint8Array, Uint8Array>({
    transform(chunk, controller) {
      loaded += chunk.byteLength;
      onProgress(loaded, total);
      controller.enqueue(chunk);
    },
  });
  return new Response(response.body.pipeThrough(count), { headers: { 'content-type': 'application/wasm' } });
}

export async function loadEngine(base: string, onProgress: (loaded: number, total: number) => void): Promise<Engine> {
  const script = new URL('pkg/seqzoo_web.js', base).href;
  const [module, binary] = await Promise.all([
    import(/* @vite-ignore */ script) as Promise<Module>,
    counted(new URL('pkg/seqzoo_web_bg.wasm', base).href, onProgress),
  ]);
  await module.default({ module_or_path: binary });
  let session: Session | undefined;
  const open = (): Session => {
    if (session === undefined) throw new Error('the engine has no device yet');
    return session;
  };
  const init = async (backend: Backend) => {
    session = await module.Session.open(backend);
    return await session.info();
  };
  return new Proxy({ init } as Engine, {
    get: (own, name) => {
      if (name === 'init') return own.init;
      // Or an await would take it for a promise.
      if (name === 'then') return undefined;
      return async (...args: unknown[]) => {
        const current = open();
        return await (current[name as keyof Session] as (...a: unknown[]) => unknown).apply(current, args);
      };
    },
  });
}
