// What page and worker say to each other.
import type { BenchPoint, Engine, ParityRow, StateSlot, Trace } from './types';

/** Engine calls that go through as they are, and the worker's own. */
export interface Calls extends Omit<Engine, 'read' | 'state' | 'states' | 'explain' | 'bench' | 'parity'> {
  /** Fetches and starts the module; `base` is the folder of the page. */
  load(base: string): Promise<void>;
  read(handle: number, text: string): Promise<Trace>;
  /** States of one layer after each token; reads the text again if another one was read since. */
  states(handle: number, text: string, layer: number): Promise<StateSlot[][]>;
  /** Points and rows come as progress: a function cannot be sent. */
  bench(configJson: string): Promise<void>;
  parity(names: string[]): Promise<void>;
  /** `explain` of this text. */
  explainIn(text: string, args: Parameters<Engine['explain']>): ReturnType<Engine['explain']>;
  /** Destroys the GPU device as if it had been lost: for the tests of the fallback. */
  loseDevice(): Promise<boolean>;
}

export type Op = keyof Calls;

export interface Request {
  id: number;
  op: Op;
  args: unknown[];
}

export type Reply =
  | { id: number; value: unknown }
  | { id: number; error: string; fatal: boolean }
  | { id: number; progress: BenchPoint | ParityRow }
  | { event: 'loading'; loaded: number; total: number }
  | { event: 'lost'; reason: string };
