// The frame around every page: where one is, what the engine does, what went wrong.
import { useSignalEffect } from '@preact/signals';
import { useErrorBoundary } from 'preact/hooks';
import type { ComponentType } from 'preact';
import { dismiss, notices, start, status, wantedBackend } from './engine/store';
import { bytes } from './lib/format';
import { chosenTheme, theme } from './lib/theme';
import { format, go, page, PAGES, target, type Page } from './lib/url';
import { Compare } from './pages/Compare';
import { Explain } from './pages/Explain';
import { Learn } from './pages/Learn';
import { Parity } from './pages/Parity';
import { Remember } from './pages/Remember';
import { Speed } from './pages/Speed';

const VIEW: Record<Page, ComponentType> = { remember: Remember, compare: Compare, learn: Learn, speed: Speed, explain: Explain, parity: Parity };
const TITLE: Record<Page, string> = { remember: 'Remember', compare: 'Compare', learn: 'Learn', speed: 'Speed', explain: 'Explain', parity: 'Parity' };

export function App() {
  const Current = VIEW[page.value];
  useSignalEffect(() => {
    document.documentElement.dataset['theme'] = theme.value;
    document.title = `${TITLE[page.value]} · seqzoo`;
  });
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById('main')?.focus(); }}>To the content</a>
      <nav aria-label="Pages">
        <a class="word" href={format(target('remember'))} onClick={(event) => follow(event, 'remember')}>seqzoo</a>
        <ul>
          {PAGES.map((p) => (
            <li key={p}>
              <a href={format(target(p))} aria-current={page.value === p ? 'page' : undefined} onClick={(event) => follow(event, p)}>{TITLE[p]}</a>
            </li>
          ))}
        </ul>
        <div class="nav-end">
          <EngineStatus />
          <select aria-label="Colours" value={chosenTheme.value} onChange={(event) => chosenTheme.set(event.currentTarget.value as 'auto')}>
            <option value="auto">auto</option>
            <option value="light">light</option>
            <option value="dark">dark</option>
          </select>
        </div>
      </nav>
      <div class="notices" role="status" aria-live="polite">
        {notices.value.map((n) => (
          <p key={n.id}>{n.text} <button type="button" class="link" onClick={() => dismiss(n.id)}>close</button></p>
        ))}
      </div>
      <main id="main" tabIndex={-1} key={page.value}>
        <Guard><Current /></Guard>
      </main>
      <footer class="end">
        <p>
          seqzoo is a library of sequence models in Rust. Every number on this page is computed by it, in your browser. Nothing is
          sent anywhere.
        </p>
      </footer>
    </>
  );
}

/** A page that fails says so; the others stay reachable. */
function Guard({ children }: { children: preact.ComponentChildren }) {
  const [error, reset] = useErrorBoundary((e) => console.error(e));
  if (error === undefined) return <>{children}</>;
  return (
    <div class="error">
      <p>This page stopped: {error instanceof Error ? error.message : String(error)}</p>
      <button type="button" onClick={reset}>Try again</button>
    </div>
  );
}

function follow(event: MouseEvent, to: Page) {
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(to);
}

function EngineStatus() {
  const now = status.value;
  const gpu = 'gpu' in navigator;
  return (
    <div class="engine" data-phase={now.phase}>
      <span class="engine-words">
        {now.phase === 'loading' && (now.loaded > 0 ? `loading ${bytes(now.loaded)}${now.total > 0 ? ` of ${bytes(now.total)}` : ''}` : 'starting')}
        {now.phase === 'ready' && 'computing on'}
        {now.phase === 'failed' && (
          <>
            <span title={now.reason}>engine failed</span> <button type="button" class="link" onClick={() => void start('cpu')}>again</button>
          </>
        )}
      </span>
      <select aria-label="Where to compute" value={wantedBackend.value} onChange={(event) => wantedBackend.set(event.currentTarget.value as 'cpu')}>
        <option value="cpu">CPU</option>
        <option value="webgpu">{gpu ? 'WebGPU' : 'WebGPU (not here)'}</option>
      </select>
    </div>
  );
}
