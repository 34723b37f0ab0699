// What the page knows of the engine: its status, the open models, and what they read.
import { batch, effect, signal, untracked, type Signal } from '@preact/signals';
import { choiceParam } from '../lib/url';
import { Client, Gone, Stale } from './client';
import type { Calls, Op } from './protocol';
import type { ArchInfo, Backend, EngineInfo, ModelInfo, StateSlot, Trace } from './types';

export type Status =
  | { phase: 'loading'; loaded: number; total: number }
  | { phase: 'ready'; info: EngineInfo }
  | { phase: 'failed'; reason: string };

export interface Notice {
  id: number;
  text: string;
}

export const status = signal<Status>({ phase: 'loading', loaded: 0, total: 0 });
export const notices = signal<readonly Notice[]>([]);
export const architectures = signal<readonly ArchInfo[]>([]);
export const shipped = signal<readonly ShippedModel[] | undefined>(undefined);
/** Rises with every new worker: handles of an older one mean nothing. */
export const generation = signal(0);
export const wantedBackend = choiceParam<Backend>('backend', ['cpu', 'webgpu'], 'cpu');

export interface ShippedModel {
  file: string;
  arch: string;
  task: 'mqar' | 'text' | 'copy';
  bytes: number;
  /** Share of right answers, or of right letters. */
  recall?: number;
  copied?: number;
  note?: string;
}

let lastNotice = 0;
export function notify(text: string) {
  if (notices.peek().some((n) => n.text === text)) return;
  notices.value = [...notices.peek(), { id: ++lastNotice, text }].slice(-3);
}
export const dismiss = (id: number) => (notices.value = notices.peek().filter((n) => n.id !== id));

const base = () => new URL('.', document.baseURI).href;

let client: Client | undefined;
/** What the running or starting worker computes on. */
let active: Backend | undefined;
/** All architectures, once asked for; before that only the recorded ones are known. */
let listed: readonly ArchInfo[] | undefined;
let crashes = 0;

/** Why there is no WebGPU, in a few words; the engine's own reason names every backend it tried. */
async function noWebgpu(): Promise<string | undefined> {
  const { gpu } = navigator as { gpu?: { requestAdapter(): Promise<object | null> } };
  if (gpu === undefined) return 'this browser does not offer it';
  return (await gpu.requestAdapter()) === null ? 'no graphics adapter was found' : undefined;
}

/** Starts a worker on a backend; where WebGPU does not start, on the CPU with a notice. */
export async function start(backend: Backend): Promise<void> {
  active = backend;
  client?.close('restarted');
  const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module', name: 'seqzoo' });
  const mine = new Client(worker, {
    loading: (loaded, total) => {
      if (client === mine) status.value = { phase: 'loading', loaded, total };
    },
    gone: (reason) => {
      if (client === mine) recover(backend, reason);
    },
  });
  client = mine;
  batch(() => {
    status.value = { phase: 'loading', loaded: 0, total: 0 };
    generation.value += 1;
    models.clear();
  });
  try {
    await mine.call('load', [base()]);
    let info: EngineInfo;
    try {
      const missing = backend === 'webgpu' ? await noWebgpu() : undefined;
      if (missing !== undefined) throw new Error(missing);
      info = await mine.call('init', [backend]);
    } catch (error) {
      if (backend === 'cpu' || error instanceof Gone) throw error;
      notify(`WebGPU is not available here (${said(error)}): computing on the CPU instead.`);
      active = 'cpu';
      wantedBackend.set('cpu');
      info = await mine.call('init', ['cpu']);
    }
    if (client !== mine) return;
    status.value = { phase: 'ready', info };
    listed ??= await mine.call('architectures', []);
    architectures.value = listed;
  } catch (error) {
    if (client === mine && !(error instanceof Gone)) {
      status.value = { phase: 'failed', reason: said(error) };
    }
  }
}

function recover(backend: Backend, reason: string) {
  crashes += 1;
  if (crashes > 5) {
    status.value = { phase: 'failed', reason: `the engine stopped too often, last because ${reason}` };
    return;
  }
  if (backend === 'webgpu') {
    notify(`WebGPU stopped: ${reason}. Computing on the CPU from now on; nothing you entered is lost.`);
    active = 'cpu';
    wantedBackend.set('cpu');
  } else {
    notify(`The engine stopped and was started again: ${reason}.`);
  }
  void start('cpu');
}

/** Starts the engine, and again whenever the reader asks for the other backend. */
export function boot() {
  void fetchShipped();
  effect(() => {
    const wanted = wantedBackend.value;
    if (wanted !== active) untracked(() => void start(wanted));
  });
}

/** When the engine has started, or failed to. */
export function settled(): Promise<Status> {
  return new Promise((resolve) => {
    let stop: (() => void) | undefined;
    stop = effect(() => {
      const now = status.value;
      if (now.phase === 'loading') return;
      resolve(now);
      queueMicrotask(() => stop?.());
    });
  });
}

/** Does something that moves the engine, and moves it back. */
export async function withBackends(work: () => Promise<void>): Promise<void> {
  const before = wantedBackend.peek();
  try {
    await work();
  } finally {
    wantedBackend.set(before);
  }
}

/** Makes the engine compute there; false where it cannot. */
export async function computeOn(backend: Backend): Promise<boolean> {
  wantedBackend.set(backend);
  const now = await settled();
  return now.phase === 'ready' && now.info.backend === backend;
}

async function fetchShipped() {
  try {
    const response = await fetch(new URL('models/index.json', base()));
    shipped.value = response.ok ? ((await response.json()) as ShippedModel[]) : [];
  } catch {
    shipped.value = [];
  }
}

export const said = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** A call to the running engine. */
export function call<K extends Op>(
  op: K,
  args: Parameters<Calls[K]>,
  options: { wanted?: () => boolean; urgent?: boolean; progress?: (value: never) => void } = {},
): ReturnType<Calls[K]> {
  if (client === undefined) return Promise.reject(new Gone('the engine is not started')) as ReturnType<Calls[K]>;
  return client.call(op, args, options);
}

export type ModelSpec =
  | { kind: 'drawn'; config: string; seed: number }
  | { kind: 'shipped'; file: string }
  /** Trained on this page; `id` is its place in `own`. */
  | { kind: 'own'; id: number };

export function specKey(spec: ModelSpec): string {
  if (spec.kind === 'drawn') return `${spec.config}#${spec.seed}`;
  return spec.kind === 'shipped' ? `file:${spec.file}` : `own:${spec.id}`;
}

/** Models that the reader trained: lost when the page is closed. */
export const own = signal<readonly { name: string; arch: string; task: 'mqar' | 'text'; bytes: Uint8Array }[]>([]);

export interface Opened {
  handle: number;
  info: ModelInfo;
}

const models = new Map<string, Promise<Opened>>();

/** A model, opened once per worker. */
export function model(spec: ModelSpec): Promise<Opened> {
  const key = specKey(spec);
  let opened = models.get(key);
  if (opened === undefined) {
    opened = open(spec);
    models.set(key, opened);
    opened.catch(() => models.delete(key));
  }
  return opened;
}

async function open(spec: ModelSpec): Promise<Opened> {
  if (spec.kind === 'drawn') return call('openPreset', [spec.config, spec.seed]);
  if (spec.kind === 'own') {
    const mine = own.peek()[spec.id];
    if (mine === undefined) throw new Error('this model was trained in another visit');
    return call('openWeights', [mine.bytes]);
  }
  const response = await fetch(new URL(`models/${spec.file}`, base()));
  if (!response.ok) throw new Error(`${spec.file}: ${response.status} ${response.statusText}`);
  return call('openWeights', [new Uint8Array(await response.arrayBuffer())]);
}

/** What a model made of a text. */
export interface Reading {
  key: string;
  spec: ModelSpec;
  text: string;
  info?: ModelInfo;
  trace?: Trace;
  /** `[layer][token]`, as far as asked for. */
  states: (StateSlot[][] | undefined)[];
  /** Shown from the file that comes with the page, before the engine is there. */
  recorded?: boolean;
  error?: string;
}

const READINGS_KEPT = 32;

interface Entry {
  value: Signal<Reading>;
  users: number;
  /** Layers being filled in, by the worker that does it. */
  busy: Map<number, number>;
}

const readings = new Map<string, Entry>();

const readingKey = (spec: ModelSpec, text: string) => `${specKey(spec)}\n${text}`;

function entry(spec: ModelSpec, text: string): Entry {
  const key = readingKey(spec, text);
  let found = readings.get(key);
  if (found === undefined) {
    found = { value: signal<Reading>({ key, spec, text, states: [] }), users: 0, busy: new Map() };
  } else {
    readings.delete(key);
  }
  readings.set(key, found);
  for (const [old, { users }] of readings) {
    if (readings.size <= READINGS_KEPT) break;
    if (users === 0) readings.delete(old);
  }
  return found;
}

/** Puts a recorded reading where the live one will be. */
export function record(reading: Reading) {
  const found = entry(reading.spec, reading.text);
  if (found.value.peek().trace === undefined) found.value.value = { ...reading, key: found.value.peek().key, recorded: true };
}

/** The reading of a text, kept up to date; call `release` when it is no longer shown. */
export function reading(spec: ModelSpec, text: string, layer: number): { value: Signal<Reading>; release: () => void } {
  const found = entry(spec, text);
  found.users += 1;
  const stop = effect(() => {
    if (status.value.phase === 'ready' && text !== '') void fill(found, layer);
  });
  return {
    value: found.value,
    release: () => {
      stop();
      found.users -= 1;
    },
  };
}

async function fill(found: Entry, layer: number) {
  const before = found.value.peek();
  const fresh = before.trace === undefined || before.recorded === true;
  if (!fresh && before.states[layer] !== undefined) return;
  const worker = generation.peek();
  if (found.busy.get(layer) === worker) return;
  found.busy.set(layer, worker);
  const wanted = () => found.users > 0;
  try {
    const { handle, info } = await model(before.spec);
    if (!wanted()) return;
    const trace = fresh ? await call('read', [handle, before.text], { wanted }) : before.trace!;
    if (fresh && before.recorded !== true) found.value.value = { ...found.value.peek(), info, trace, error: '' };
    const shown = Math.min(layer, trace.layers.length - 1);
    const states = await call('states', [handle, before.text, shown], { wanted });
    const now = found.value.peek();
    const all = fresh ? [] : now.states.slice();
    all[layer] = states;
    found.value.value = { key: now.key, spec: now.spec, text: now.text, info, trace, states: all };
    if (performance.getEntriesByName('seqzoo:live').length === 0) performance.mark('seqzoo:live');
  } catch (error) {
    if (error instanceof Stale || error instanceof Gone) return;
    const { key, spec, text } = before;
    found.value.value = { key, spec, text, states: [], error: said(error) };
  } finally {
    if (found.busy.get(layer) === worker) found.busy.delete(layer);
  }
}
