import { render } from 'preact';
import { App } from './app';
import { showRecorded } from './engine/recorded';
import { boot, call, notify, said } from './engine/store';
import { parityRows } from './pages/Parity';
import { speedRows } from './pages/Speed';
import './style.css';

declare global {
  interface Window {
    /** For tests and for the curious: the running engine. */
    seqzoo: { call: typeof call; parityRows: typeof parityRows; speedRows: typeof speedRows };
  }
}

window.seqzoo = { call, parityRows, speedRows };
showRecorded().catch((error: unknown) => notify(`The recorded picture could not be read: ${said(error)}`));
boot();
render(<App />, document.getElementById('app')!);
