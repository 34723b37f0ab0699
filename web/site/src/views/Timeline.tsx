// The text as a control: drag over it, use the arrow keys, or let it play.
import { effect, useSignal, type ReadonlySignal } from '@preact/signals';
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';
import { token as show } from '../lib/format';
import { reducedMotion } from '../lib/theme';

const ICONS = {
  start: 'M4 3v10M13 3L6 8l7 5z',
  back: 'M11 3L4 8l7 5z',
  on: 'M5 3l7 5-7 5z',
  end: 'M12 3v10M3 3l7 5-7 5z',
};

const Icon = ({ path }: { path: string }) => (
  <svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d={path} /></svg>
);

export interface TimelineProps {
  tokens: readonly string[];
  at: ReadonlySignal<number>;
  set: (token: number) => void;
  label?: string;
}

export function Timeline({ tokens, at, set, label = 'Token' }: TimelineProps) {
  const strip = useRef<HTMLDivElement>(null);
  const playing = useSignal(false);
  const last = tokens.length - 1;

  // Before anything is painted: a slider without a value is none to a screen reader.
  useLayoutEffect(() => {
    let before = -1;
    const mark = (i: number, now: number) => {
      const node = strip.current?.children[i];
      if (node !== undefined) node.className = i < now ? 'read' : i === now ? 'read now' : '';
    };
    return effect(() => {
      const now = Math.min(last, at.value);
      if (before < 0) for (let i = 0; i <= last; i += 1) mark(i, now);
      else for (let i = Math.min(before, now); i <= Math.max(before, now); i += 1) mark(i, now);
      before = now;
      const node = strip.current;
      node?.setAttribute('aria-valuenow', String(now + 1));
      node?.setAttribute('aria-valuetext', `${now + 1} of ${last + 1}: ${show(tokens[now] ?? '')}`);
      const current = node?.children[now] as HTMLElement | undefined;
      if (node !== null && current !== undefined && node.scrollHeight > node.clientHeight) {
        const top = current.offsetTop - node.offsetTop;
        if (top < node.scrollTop || top > node.scrollTop + node.clientHeight - 30) node.scrollTop = top - 30;
      }
    });
  }, [tokens, at]);

  useEffect(
    () =>
      effect(() => {
        if (!playing.value) return;
        if (at.peek() >= last) set(0);
        const timer = setInterval(
          () => {
            if (at.peek() >= last) playing.value = false;
            else set(at.peek() + 1);
          },
          reducedMotion.peek() ? 1200 : tokens.length > 80 ? 90 : 350,
        );
        return () => clearInterval(timer);
      }),
    [tokens, at],
  );

  const step = (by: number) => {
    playing.value = false;
    set(Math.min(last, Math.max(0, at.peek() + by)));
  };
  const key = (event: KeyboardEvent) => {
    const moves: Record<string, number> = {
      ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity,
    };
    const by = moves[event.key];
    if (by !== undefined) step(by);
    else if (event.key === ' ') playing.value = !playing.value;
    else return;
    event.preventDefault();
  };
  const scrub = (event: PointerEvent) => {
    if (event.buttons === 0 && event.type === 'pointermove') return;
    const hit = document.elementFromPoint(event.clientX, event.clientY);
    const i = hit === null || hit.parentElement !== strip.current ? -1 : Number((hit as HTMLElement).dataset['i']);
    if (i >= 0) {
      playing.value = false;
      set(i);
    }
  };

  return (
    <div class="timeline">
      <div class="transport" role="group" aria-label="Steps">
        <button type="button" onClick={() => step(-Infinity)} aria-label="To the start"><Icon path={ICONS.start} /></button>
        <button type="button" onClick={() => step(-1)} aria-label="One token back"><Icon path={ICONS.back} /></button>
        <button type="button" class="primary" onClick={() => (playing.value = !playing.value)} aria-pressed={playing}>
          {playing.value ? 'Pause' : 'Play'}
        </button>
        <button type="button" onClick={() => step(1)} aria-label="One token on"><Icon path={ICONS.on} /></button>
        <button type="button" onClick={() => step(Infinity)} aria-label="To the end"><Icon path={ICONS.end} /></button>
      </div>
      <div
        ref={strip}
        class="strip"
        role="slider"
        tabIndex={0}
        aria-label={label}
        aria-valuemin={1}
        aria-valuemax={last + 1}
        onKeyDown={key}
        onPointerDown={(event) => {
          (event.target as HTMLElement).releasePointerCapture(event.pointerId);
          scrub(event);
        }}
        onPointerMove={scrub}
      >
        {tokens.map((text, i) => (
          <span key={i} data-i={i}>{show(text)}</span>
        ))}
      </div>
    </div>
  );
}
