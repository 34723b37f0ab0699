// The picture that comes with the page: traces that the native library wrote, shown until the engine is there.
import { batch } from '@preact/signals';
import { shownConfig } from '../lib/presets';
import { architectures, record, type ModelSpec } from './store';
import type { ArchInfo, Grid, LayerTrace, ModelInfo, StateSlot, Trace } from './types';

type Plain<T> = T extends Float32Array | Float64Array ? number[] : T extends (infer E)[] ? Plain<E>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

export interface RecordedModel {
  spec?: ModelSpec;
  arch: ArchInfo;
  info: ModelInfo;
  trace: Plain<Trace>;
  /** Of layer 0, `[token][slot]`. */
  states: Plain<StateSlot>[][];
}

export interface Recorded {
  text: string;
  seed?: number;
  models: RecordedModel[];
}

const grid = (g: Plain<Grid>): Grid => ({ ...g, values: Float32Array.from(g.values) });

function layer(l: Plain<LayerTrace>): LayerTrace {
  const { halfLife, router, memoryLoss, memoryNorm, ...rest } = l;
  return {
    ...rest,
    attention: (l.attention ?? []).map(grid),
    spectrum: (l.spectrum ?? []).map((s) => (s.im === undefined ? { re: grid(s.re) } : { re: grid(s.re), im: grid(s.im) })),
    gates: (l.gates ?? []).map((g) => ({ name: g.name, grid: grid(g.grid) })),
    ...(halfLife !== undefined && { halfLife: grid(halfLife) }),
    ...(router !== undefined && { router: grid(router) }),
    ...(memoryLoss !== undefined && { memoryLoss: grid(memoryLoss) }),
    ...(memoryNorm !== undefined && { memoryNorm: grid(memoryNorm) }),
    stateBytes: Float64Array.from(l.stateBytes),
    explains: l.explains ?? [],
    notes: l.notes ?? [],
  };
}

export async function showRecorded(): Promise<void> {
  const response = await fetch(new URL('first.json', document.baseURI));
  if (!response.ok) return;
  const { text, seed = 0, models } = (await response.json()) as Recorded;
  batch(() => {
    if (architectures.peek().length === 0) architectures.value = models.map((m) => m.arch);
    for (const m of models) {
      const spec: ModelSpec = m.spec ?? { kind: 'drawn', config: shownConfig(m.arch.name), seed };
      const trace: Trace = { ...m.trace, predictions: m.trace.predictions ?? [], layers: m.trace.layers.map(layer) };
      const states = m.states.map((slots) => slots.map((s) => ({ ...s, values: Float32Array.from(s.values) })));
      record({ key: '', spec, text, info: m.info, trace, states: [states] });
    }
  });
}
