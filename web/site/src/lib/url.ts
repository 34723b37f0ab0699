// The whole state of the page lives in the hash: `#/remember?text=…&token=7`.
import { batch, computed, signal, type ReadonlySignal } from '@preact/signals';

export const PAGES = ['remember', 'compare', 'learn', 'speed', 'explain', 'parity'] as const;
export type Page = (typeof PAGES)[number];

export interface Location {
  page: Page;
  params: Readonly<Record<string, string>>;
}

/** Reads a hash; an unknown page is the first one. */
export function parse(hash: string): Location {
  const [path = '', query = ''] = hash.replace(/^#\/?/, '').split(/\?(.*)/s);
  const page = (PAGES as readonly string[]).includes(path) ? (path as Page) : PAGES[0];
  return { page, params: Object.fromEntries(new URLSearchParams(query)) };
}

/** Writes a hash, with its parameters in a fixed order, so that equal states have equal addresses. */
export function format({ page, params }: Location): string {
  const query = new URLSearchParams();
  for (const key of Object.keys(params).sort()) query.set(key, params[key]!);
  const text = query.toString();
  return `#/${page}${text === '' ? '' : `?${text}`}`;
}

const browser = typeof window !== 'undefined';
const current = signal<Location>(parse(browser ? window.location.hash : ''));

export const page = computed(() => current.value.page);

let timer: ReturnType<typeof setTimeout> | undefined;

/** Browsers refuse more than some 20 address changes a second: scrubbing writes once it rests. */
function write() {
  if (!browser) return;
  clearTimeout(timer);
  timer = setTimeout(flush, 150);
}

/** Writes the address now. */
export function flush() {
  clearTimeout(timer);
  timer = undefined;
  const hash = format(current.value);
  if (hash !== window.location.hash) history.replaceState(null, '', hash);
}

if (browser) {
  window.addEventListener('hashchange', () => {
    const next = parse(window.location.hash);
    if (format(next) !== format(current.value)) current.value = next;
  });
}

/** Preferences that stay when the page changes. */
const STICKY = ['backend', 'theme'];

/** A page with these parameters and the reader's preferences. */
export function target(page: Page, params: Record<string, string> = {}): Location {
  const kept = Object.entries(current.value.params).filter(([key]) => STICKY.includes(key));
  return { page, params: { ...Object.fromEntries(kept), ...params } };
}

/** Goes there, as a new entry of the history. */
export function go(page: Page, params: Record<string, string> = {}) {
  if (timer !== undefined) flush();
  const next = target(page, params);
  history.pushState(null, '', format(next));
  current.value = next;
  window.scrollTo(0, 0);
}

export interface Param<T> extends ReadonlySignal<T> {
  set(value: T): void;
}

/** One parameter of the address; its default value is left out. */
export function param<T>(
  name: string,
  fallback: T,
  read: (text: string) => T | undefined,
  show: (value: T) => string,
): Param<T> {
  const value = computed(() => {
    const text = current.value.params[name];
    return (text === undefined ? undefined : read(text)) ?? fallback;
  });
  const set = (next: T) => {
    const { page, params } = current.peek();
    const text = show(next);
    if (params[name] === text) return;
    const { [name]: _, ...rest } = params;
    current.value = { page, params: text === show(fallback) ? rest : { ...rest, [name]: text } };
    write();
  };
  return Object.assign(value, { set }) as Param<T>;
}

export const textParam = (name: string, fallback: string) => param(name, fallback, (t) => t, (v) => v);

export const intParam = (name: string, fallback: number, min = 0, max = Number.MAX_SAFE_INTEGER) =>
  param(
    name,
    fallback,
    (t) => (/^-?\d+$/.test(t) ? Math.min(max, Math.max(min, Number(t))) : undefined),
    (v) => String(v),
  );

export const numberParam = (name: string, fallback: number, min: number, max: number) =>
  param(
    name,
    fallback,
    (t) => (t.trim() !== '' && Number.isFinite(Number(t)) ? Math.min(max, Math.max(min, Number(t))) : undefined),
    (v) => String(v),
  );

export const choiceParam = <T extends string>(name: string, choices: readonly T[], fallback: T) =>
  param<T>(name, fallback, (t) => choices.find((c) => c === t), (v) => v);

export const listParam = (name: string, fallback: readonly string[]) =>
  param<readonly string[]>(name, fallback, (t) => t.split(',').filter((s) => s !== ''), (v) => v.join(','));

/** Several parameters in one change. */
export const together = batch;
