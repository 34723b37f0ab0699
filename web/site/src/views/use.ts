// Hooks over the store.
import { computed, type ReadonlySignal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { reading, specKey, type ModelSpec, type Reading } from '../engine/store';

/** What a model makes of a text; released when the component goes. */
export function useReading(spec: ModelSpec, text: string, layer: number): Reading {
  const held = useMemo(() => reading(spec, text, layer), [specKey(spec), text, layer]);
  useEffect(() => held.release, [held]);
  return held.value.value;
}

/** A computed signal that lives as long as its inputs: all that `make` uses, signals too. */
export function useDerived<T>(make: () => T, inputs: readonly unknown[]): ReadonlySignal<T> {
  return useMemo(() => computed(make), inputs);
}
