import type { ArchInfo, Backend, BenchPoint, CopyAnswer, EngineInfo, Explanation, ExplainKind, ModelInfo, ParityRow } from './types';
import type { RecallAnswer, StateSlot, StepRow, Trace } from './types';

export * from './types';

type Opened = { handle: number; info: ModelInfo };

/** The engine on one backend. What `types.d.ts` says of `Engine` holds; calls without a promise answer at once. */
export interface Session {
  info(): EngineInfo;
  architectures(): ArchInfo[];
  describe(config: string): ArchInfo;
  openPreset(config: string, seed: number): Opened;
  openWeights(bytes: Uint8Array): Opened;
  close(handle: number): void;
  read(handle: number, text: string): Trace;
  state(handle: number, layer: number, token: number): StateSlot[];
  states(handle: number, layer: number): StateSlot[][];
  explain(
    handle: number,
    layer: number,
    kind: ExplainKind,
    head: number,
    row: number,
    column: number,
    token?: number,
  ): Explanation;
  generate(handle: number, prompt: string, tokens: number, seed: number, temperature: number): string;
  recall(handle: number, pairs: [string, string][], ask: string): RecallAnswer;
  copy(handle: number, text: string): CopyAnswer;
  trainer(config: string, seed: number): Opened;
  trainSteps(handle: number, steps: number): Promise<StepRow[]>;
  trainerRead(handle: number, text: string): Promise<Trace>;
  trainerWeights(handle: number): Promise<Uint8Array>;
  bench(config: string, onPoint: (point: BenchPoint) => void): Promise<void>;
  parity(names: string[], onRow: (row: ParityRow) => void): Promise<void>;
}

/** Loads the module and opens a backend. `wasm`: where it is, if not beside this file. */
export function open(backend?: Backend, wasm?: BufferSource | URL | string): Promise<Session>;
