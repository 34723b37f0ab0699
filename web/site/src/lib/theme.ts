// The reader's preferences, as signals.
import { computed, signal } from '@preact/signals';
import { choiceParam } from './url';
import type { Theme } from './palette';

function media(query: string) {
  const list = window.matchMedia(query);
  const value = signal(list.matches);
  list.addEventListener('change', () => (value.value = list.matches));
  return value;
}

const dark = media('(prefers-color-scheme: dark)');
export const reducedMotion = media('(prefers-reduced-motion: reduce)');

export const chosenTheme = choiceParam('theme', ['auto', 'light', 'dark'] as const, 'auto');
export const theme = computed<Theme>(() => {
  if (chosenTheme.value !== 'auto') return chosenTheme.value;
  return dark.value ? 'dark' : 'light';
});
