// The number under the pointer, or pinned, and where it comes from.
import { signal } from '@preact/signals';
import { param } from '../lib/url';
import type { ExplainKind } from '../engine/types';
import type { ModelSpec } from '../engine/store';

export interface Spot {
  arch: string;
  kind: ExplainKind | 'gate' | 'router' | 'change' | 'number';
  /** Which tensor of the state, for `state` and `change`; else empty. */
  slot: string;
  head: number;
  row: number;
  column: number;
}

/** Everything the inspector needs about a spot. */
export interface Looked extends Spot {
  spec: ModelSpec;
  text: string;
  layer: number;
  token: number;
  value: number;
  /** In words: `softmax attention, head 1: what "c" reads from "a"`. */
  words: string;
  equations: readonly string[];
  /** Head, row and column as the engine counts them. */
  place: readonly [number, number, number];
  /** The engine can explain it. */
  explains: boolean;
}

export const hovered = signal<Looked | undefined>(undefined);
export const kept = signal<Looked | undefined>(undefined);

/** The pinned spot, in the address. */
export const pinned = param<Spot | undefined>(
  'cell',
  undefined,
  (text) => {
    const [arch, kind, slot = '', ...at] = text.split(':');
    const [head, row, column] = at.map(Number);
    if (arch === undefined || kind === undefined || [head, row, column].some((n) => n === undefined || !Number.isInteger(n))) return undefined;
    return { arch, kind: kind as Spot['kind'], slot, head: head!, row: row!, column: column! };
  },
  (spot) => (spot === undefined ? '' : [spot.arch, spot.kind, spot.slot, spot.head, spot.row, spot.column].join(':')),
);

/** Shows a number; pinned ones stay, and are in the address. Without `pin`, leaving goes back to the pinned one. */
export function look(at: Looked | undefined, pin: boolean) {
  if (!pin) {
    if (at !== undefined || kept.peek() !== undefined) hovered.value = at;
    return;
  }
  hovered.value = undefined;
  kept.value = at;
  pinned.set(at === undefined ? undefined : { arch: at.arch, kind: at.kind, slot: at.slot, head: at.head, row: at.row, column: at.column });
}
