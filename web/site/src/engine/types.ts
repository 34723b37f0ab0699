// The contract between the page and the engine. The Rust side (web/src) makes exactly these shapes; the worker
// passes them on. Every number is the library's own.

/** Where tensors live. Views, states and generation are always computed on the CPU, on which reading is cheap. */
export type Backend = 'cpu' | 'webgpu';

/** A matrix, row-major: `values.length === rows * columns`. */
export interface Grid {
  rows: number;
  columns: number;
  values: Float32Array;
}

/** What the engine runs on. */
export interface EngineInfo {
  backend: Backend;
  /** Name of the WebGPU adapter, where known. */
  adapter?: string;
  threads: number;
  /** Version of the library. */
  version: string;
}

export interface ArchInfo {
  /** Name in the registry: what every other call takes. */
  name: string;
  /** Title of the paper. */
  title: string;
  family: string;
  /** One sentence. */
  summary: string;
  /** Where it is from, in words. */
  paper: string;
  arxiv?: string;
  year?: number;
  /** The recurrence, code style, one line each. */
  equations: string[];
  /** What is carried between tokens, in words. */
  state: string;
  grows: 'fixed' | 'per_token' | 'per_doubling';
  /** The mixer's default configuration as JSON, with the field `arch`: a start for `openPreset`. */
  config: string;
  /** How its state moves: the structure of the transition matrix, where the update is linear in the state. */
  transition?: 'identity' | 'scalar' | 'diagonal' | 'householder' | 'dense';
}

export interface ModelInfo {
  /** Architecture of the first block. */
  arch: string;
  params: number;
  layers: number;
  dModel: number;
  /** Text of each token id. */
  vocab: string[];
  /** `bytes`: reads any text. `ids`: reads `vocab` words separated by blanks (`k3 v7`), as made by the recall task. */
  tokenizer: 'bytes' | 'ids';
  /** `false`: parameters are drawn, only the shape of the memory is meaningful. */
  trained: boolean;
  /** The model's whole configuration as JSON. */
  config: string;
  note?: string;
}

/** One tensor of a state, batch axis dropped; heat map: last axis as columns, all before it as rows. */
export interface StateSlot {
  name: string;
  shape: number[];
  values: Float32Array;
  growth: 'fixed' | 'time' | 'doubling';
}

export interface NamedGrid {
  name: string;
  /** `[tokens, channels]` */
  grid: Grid;
}

/** Everything that can be looked at of one layer; what it does not have is absent or empty. */
export interface LayerTrace {
  arch: string;
  /** Implied attention, `[tokens, tokens]` of each head: row i is what token i reads. */
  attention: Grid[];
  /** Eigenvalues of the transition, `[tokens, eigenvalues]` of each head; no `im`: all real. */
  spectrum: { re: Grid; im?: Grid }[];
  spectrumKind?: 'exact' | 'frozen' | 'normaliser';
  /** Tokens after which half is forgotten, `[heads, eigenvalues]`; 1e9 stands for never. */
  halfLife?: Grid;
  gates: NamedGrid[];
  /** Weight of each head `[tokens, heads]`; 0 where a router left it out. */
  router?: Grid;
  /** Loss of the inner memory on each token before it is written, `[heads, tokens]`. */
  memoryLoss?: Grid;
  /** Norm of the memory after each token, `[heads, tokens]`. */
  memoryNorm?: Grid;
  /** Bytes of the state after each token. */
  stateBytes: Float64Array;
  /** Kinds that `explain` answers for this layer. */
  explains: ExplainKind[];
  /** Why a view is absent, where that is worth saying. */
  notes: string[];
}

export interface Prediction {
  token: number;
  text: string;
  probability: number;
}

export interface Trace {
  tokens: string[];
  ids: number[];
  layers: LayerTrace[];
  /** The five most likely next tokens after each token. */
  predictions: Prediction[][];
}

export type ExplainKind = 'attention' | 'state' | 'decay' | 'spectrum';

/** A number, the equation it comes from, and the numbers that went in. */
export interface Explanation {
  /** What the page shows. */
  value: number;
  /** The same number, computed again from the terms: equal to `value` up to rounding. */
  recomputed?: number;
  /** In symbols. */
  equation: string;
  /** The equation with the terms filled in, as one line. */
  filled: string;
  terms: { symbol: string; meaning: string; value: number | number[] }[];
  /** Set where no closed form exists, and says why. */
  note?: string;
}

export type Task =
  /** Multi-query associative recall. Defaults: vocab 64, length 32, pairs 4. */
  | { task: 'mqar'; vocab?: number; length?: number; pairs?: number }
  /** Any text of more than `train.time` bytes; absent: one the library embeds. */
  | { task: 'text'; text?: string };

/** What `trainer` takes as JSON; all but `mixer` has a default. */
export interface TrainerConfig {
  /** Architecture name, or a mixer's configuration with the field `arch`. */
  mixer: string | Record<string, unknown>;
  /** Default 32. */
  dModel?: number;
  /** Default 2. */
  layers?: number;
  task: Task;
  train?: { steps?: number; batch?: number; time?: number; lr?: number; warmup?: number; weight_decay?: number };
  /** Default: that of `init`; `cpu` is always possible. */
  backend?: Backend;
}

export interface StepRow {
  step: number;
  loss: number;
  /** Share of right answers on sequences that are not trained on; in the last row of a call only. */
  accuracy?: number;
  gradNorm: number;
  msPerStep: number;
}

export type BenchMode = 'prefill' | 'decode' | 'train';

/** What `bench` takes as JSON. */
export interface BenchConfig {
  /** A name stands for the sizes of the scaling suite (`seqzoo-bench`), a configuration as JSON for itself. */
  archs: string[];
  lengths: number[];
  mode: BenchMode;
  backend?: Backend;
  /** Default 128. */
  dModel?: number;
  /** Numbers of state, where the architecture lets one choose; default 4096. */
  state?: number;
  /** Timed runs of each point after a cold and a warm one; default 3. The median is reported. */
  repeats?: number;
}

export interface BenchPoint {
  arch: string;
  length: number;
  /** Of the whole call for `prefill` and `train`, of one token after `length` for `decode`; the median of `runs`. */
  seconds: number;
  /** The very first run, with what it compiles, and for `decode` with its prompt. */
  first: number;
  runs: number[];
  /** Bytes of the state after the first run. */
  stateBytes: number;
  /** Floating-point operations of a run, and bytes it must move at least: both on paper. */
  flops: number;
  bytes: number;
  params: number;
  /** Set instead of a time where the point could not be measured. */
  error?: string;
}

/** One line of the parity matrix, the same checks as `seqzoo verify`. */
export interface ParityRow {
  arch: string;
  /** The configuration under test. */
  subject: string;
  check: string;
  /** Relative L2 error. */
  error: number;
  limit: number;
  ok: boolean;
  /** Set where the check could not run. */
  note?: string;
}

export interface RecallAnswer {
  answer: Prediction[];
  /** Bytes of all layers' states after the question. */
  stateBytes: number;
  /** FLOPs of reading the question's token. */
  readFlops: number;
  /** The words that were read, question last. */
  tokens: string[];
}

export interface CopyAnswer {
  /** What the model says, as many tokens as the text has; each is what it goes on from. */
  said: string[];
  /** The text in tokens. */
  wanted: string[];
  /** Probability of the right token at each place. */
  sure: number[];
  /** Bytes of all layers' states once the text is read. */
  stateBytes: number;
}

/** Every call runs in the worker. Model handles are numbers. Errors are `Error`s with the library's message. */
export interface Engine {
  /** Rejects with a reason where the backend is absent. */
  init(backend: Backend): Promise<EngineInfo>;
  architectures(): Promise<ArchInfo[]>;
  /** One architecture, by name or configuration (JSON). */
  describe(config: string): Promise<ArchInfo>;
  /**
   * An untrained model that reads bytes: an architecture's name, a mixer's configuration as JSON
   * (`{"arch": "gated_deltanet", "heads": 2}`), or `{"mixer": "name" or configuration, "d_model": 32, "layers": 1}`.
   */
  openPreset(configJson: string, seed: number): Promise<{ handle: number; info: ModelInfo }>;
  /** A model saved by `seqzoo train` or `trainerWeights`. */
  openWeights(bytes: Uint8Array): Promise<{ handle: number; info: ModelInfo }>;
  /** Frees a model or a trainer. */
  close(handle: number): Promise<void>;
  /** Reads the whole text from the initial state, and keeps the states for `state` and `explain`. */
  read(handle: number, text: string): Promise<Trace>;
  /** The state after a token of the text read last, counted from 0. */
  state(handle: number, layer: number, token: number): Promise<StateSlot[]>;
  /** The states after every token at once. */
  states(handle: number, layer: number): Promise<StateSlot[][]>;
  /**
   * Where a number of the trace comes from. `attention`: row i, column j. `decay`: token, channel of the first
   * gate. `spectrum`: token, eigenvalue. `state`: row and column of the memory of `head` after token `token`.
   */
  explain(
    handle: number,
    layer: number,
    kind: ExplainKind,
    head: number,
    row: number,
    column: number,
    token?: number,
  ): Promise<Explanation>;
  generate(handle: number, prompt: string, tokens: number, seed: number, temperature: number): Promise<string>;
  /** For models trained on recall: keys and values are words of `info.vocab` (`k1`…, `v1`…). */
  recall(handle: number, pairs: [string, string][], ask: string): Promise<RecallAnswer>;
  /** Reads a text and `=`, then goes on for as long as the text is. For models trained on lines like `abc=abc`. */
  copy(handle: number, text: string): Promise<CopyAnswer>;
  /** A `TrainerConfig` as JSON. The handle also serves `trainerRead`, `trainerWeights` and `close`. */
  trainer(configJson: string, seed: number): Promise<{ handle: number; info: ModelInfo }>;
  trainSteps(handle: number, steps: number): Promise<StepRow[]>;
  /** What the model in training sees now. */
  trainerRead(handle: number, text: string): Promise<Trace>;
  /** The model as it is now, for `openWeights` or a download. */
  trainerWeights(handle: number): Promise<Uint8Array>;
  /** A `BenchConfig` as JSON; one point at a time, by the worker's clock. */
  bench(configJson: string, onPoint: (point: BenchPoint) => void): Promise<void>;
  /** Runs the checks of `seqzoo verify` here, on the backend of `init`; no names: all architectures. */
  parity(names: string[], onRow: (row: ParityRow) => void): Promise<void>;
}
