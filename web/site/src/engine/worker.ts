// Runs the engine off the page's thread.
import { loadEngine } from './wasm';
import type { Calls, Reply, Request } from './protocol';
import type { Engine } from './types';

const scope = self as unknown as DedicatedWorkerGlobalScope;
const post = (reply: Reply, transfer: Transferable[] = []) => scope.postMessage(reply, transfer);

const devices: GPUDeviceLike[] = [];
let adapter = '';

interface AdapterLike {
  info?: { vendor?: string; architecture?: string; description?: string };
  requestDevice(descriptor?: object): Promise<GPUDeviceLike>;
}

interface GPUDeviceLike {
  lost: Promise<{ reason: string; message: string }>;
  destroy(): void;
  addEventListener(type: 'uncapturederror', listener: (event: Event & { error: Error }) => void): void;
}

/** The engine asks for its device inside the module; the only place to learn that it is gone is this call. */
function watchDevices() {
  const kind = (globalThis as { GPUAdapter?: { prototype: AdapterLike } }).GPUAdapter;
  if (kind === undefined) return;
  const request = kind.prototype.requestDevice;
  kind.prototype.requestDevice = async function (this: AdapterLike, descriptor?: object) {
    const device = await request.call(this, descriptor);
    const { vendor = '', architecture = '', description = '' } = this.info ?? {};
    adapter = description || [vendor, architecture].filter((s) => s !== '').join(' ');
    devices.push(device);
    void device.lost.then(({ reason, message }) => {
      post({ event: 'lost', reason: `the graphics device was lost (${message || reason})` });
    });
    device.addEventListener('uncapturederror', ({ error }) => {
      if (error.constructor.name === 'GPUOutOfMemoryError') {
        post({ event: 'lost', reason: 'the graphics device ran out of memory' });
      }
    });
    return device;
  };
}

watchDevices();

let engine: Engine | undefined;
/** What each model read last: the text whose states it still has. */
const lastRead = new Map<number, string>();

function ready(): Engine {
  if (engine === undefined) throw new Error('the engine is not loaded');
  return engine;
}

async function read(handle: number, text: string) {
  const trace = await ready().read(handle, text);
  lastRead.set(handle, text);
  return trace;
}

/** Reads again if another text was read since. */
async function readAgain(handle: number, text: string) {
  if (lastRead.get(handle) !== text) await read(handle, text);
}

const own: Pick<Calls, 'load' | 'read' | 'init' | 'states' | 'explainIn' | 'loseDevice' | 'close'> = {
  async load(base) {
    engine = await loadEngine(base, (loaded, total) => post({ event: 'loading', loaded, total }));
  },
  async init(backend) {
    const info = await ready().init(backend);
    return backend === 'webgpu' && info.adapter === undefined && adapter !== '' ? { ...info, adapter } : info;
  },
  read,
  async states(handle, text, layer) {
    await readAgain(handle, text);
    return ready().states(handle, layer);
  },
  async explainIn(text, args) {
    await readAgain(args[0], text);
    return ready().explain(...args);
  },
  async loseDevice() {
    for (const device of devices) device.destroy();
    return devices.length > 0;
  },
  async close(handle) {
    lastRead.delete(handle);
    await ready().close(handle);
  },
};

async function answer({ id, op, args }: Request) {
  try {
    let value: unknown;
    if (op === 'bench' || op === 'parity') {
      const progress = (row: never) => post({ id, progress: row });
      value = await (ready()[op] as (a: unknown, p: typeof progress) => Promise<void>)(args[0], progress);
    } else if (op in own) {
      value = await (own[op as keyof typeof own] as (...a: unknown[]) => Promise<unknown>)(...args);
    } else {
      const call = ready()[op as keyof Engine] as (...a: unknown[]) => Promise<unknown>;
      value = await call.apply(engine, args);
    }
    post({ id, value });
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    // A trap leaves the module's memory in an unknown state.
    post({ id, error: message, fatal: error instanceof WebAssembly.RuntimeError });
  }
}

scope.onmessage = (event: MessageEvent<Request>) => void answer(event.data);
