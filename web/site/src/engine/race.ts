// Several small models learning the same task, step by step in turn.
import { signal } from '@preact/signals';
import { trainedConfig } from '../lib/presets';
import { Gone } from './client';
import { call, notify, own, said, settled } from './store';
import type { ModelInfo, StepRow, Task, Trace, TrainerConfig } from './types';

export interface Racer {
  arch: string;
  handle?: number;
  info?: ModelInfo;
  rows: readonly StepRow[];
  /** What it sees of the probe text now. */
  trace?: Trace;
  weights?: Uint8Array;
  error?: string;
}

export interface RaceConfig {
  archs: readonly string[];
  task: Task;
  lr: number;
  seed: number;
  steps: number;
  dModel: number;
  layers: number;
  batch: number;
  time: number;
  /** Words or text that the pictures are made of. */
  probe: (info: ModelInfo) => string;
}

export type Phase = 'idle' | 'running' | 'paused' | 'done';

export const racers = signal<readonly Racer[]>([]);
export const phase = signal<Phase>('idle');
/** The architecture whose pictures are kept up to date. */
export const watched = signal('');

/** Time between two pictures, and length of one turn. */
const PICTURE_MS = 1200;
const TURN_MS = 300;

let config: RaceConfig | undefined;
let round = 0;

const update = (arch: string, change: Partial<Racer>) => {
  racers.value = racers.peek().map((r) => (r.arch === arch ? { ...r, ...change } : r));
};

/** Starts over with these settings. */
export async function begin(next: RaceConfig) {
  await reset();
  config = next;
  racers.value = next.archs.map((arch) => ({ arch, rows: [] }));
  phase.value = 'running';
  void loop(++round);
}

export function pause() {
  if (phase.peek() === 'running') phase.value = 'paused';
  round += 1;
}

export function resume() {
  if (phase.peek() !== 'paused') return;
  phase.value = 'running';
  void loop(++round);
}

export async function reset() {
  round += 1;
  const old = racers.peek();
  racers.value = [];
  phase.value = 'idle';
  for (const { handle } of old) if (handle !== undefined) await call('close', [handle]).catch(() => undefined);
}

/** The model as it is now. */
export async function download(arch: string): Promise<Uint8Array | undefined> {
  const handle = racers.peek().find((r) => r.arch === arch)?.handle;
  return handle === undefined ? undefined : call('trainerWeights', [handle]);
}

/** Keeps the model for the other pages. */
export async function keep(arch: string, name: string): Promise<void> {
  const bytes = await download(arch);
  if (bytes !== undefined && config !== undefined) own.value = [...own.peek(), { name, arch, task: config.task.task, bytes }];
}

async function loop(mine: number) {
  let pictured = 0;
  const current = () => round === mine;
  while (current()) {
    const left = racers.peek().filter((r) => r.error === undefined && r.rows.length < config!.steps);
    if (left.length === 0) {
      phase.value = 'done';
      await picture(current);
      return;
    }
    for (const racer of left) {
      try {
        await turn(racer, current);
        if (!current()) return;
        if (performance.now() - pictured > PICTURE_MS) {
          await picture(current);
          pictured = performance.now();
        }
      } catch (error) {
        if (!current()) return;
        if (error instanceof Gone) {
          await startOver(mine);
          return;
        }
        update(racer.arch, { error: said(error) });
      }
    }
  }
}

async function turn(racer: Racer, current: () => boolean) {
  const { arch } = racer;
  let { handle } = racer;
  const { lr, seed, dModel, layers, task, batch, time, steps } = config!;
  if (handle === undefined) {
    const trainer: TrainerConfig = { mixer: trainedConfig(arch), dModel, layers, task, train: { lr, steps, batch, ...(task.task === 'text' && { time }) } };
    const opened = await call('trainer', [JSON.stringify(trainer), seed], { wanted: current });
    handle = opened.handle;
    update(arch, opened);
  }
  const last = racer.rows.at(-1);
  const wanted = last === undefined ? 1 : Math.round(TURN_MS / Math.max(1, last.msPerStep));
  const count = Math.max(1, Math.min(50, wanted, steps - racer.rows.length));
  const rows = await call('trainSteps', [handle, count], { wanted: current });
  update(arch, { rows: [...(racers.peek().find((r) => r.arch === arch)?.rows ?? []), ...rows] });
}

async function picture(current: () => boolean) {
  const racer = racers.peek().find((r) => r.arch === watched.peek()) ?? racers.peek()[0];
  if (racer?.handle === undefined || racer.info === undefined) return;
  const trace = await call('trainerRead', [racer.handle, config!.probe(racer.info)], { wanted: current });
  const weights = await call('trainerWeights', [racer.handle], { wanted: current });
  if (racers.peek().some((r) => r.handle === racer.handle)) update(racer.arch, { trace, weights });
}

/** Pictures of another architecture at once, also while paused. */
export function watch(arch: string) {
  watched.value = arch;
  if (phase.peek() === 'paused' || phase.peek() === 'done') picture(() => true).catch(() => undefined);
}

/** The worker is gone and with it the models: the same race again, on what is left. */
async function startOver(mine: number) {
  const now = await settled();
  if (round !== mine || config === undefined) return;
  if (now.phase === 'failed') {
    phase.value = 'idle';
    return;
  }
  notify('The models in training went with the device: the race starts again from the same seed.');
  racers.value = config.archs.map((arch) => ({ arch, rows: [] }));
  void loop(mine);
}
