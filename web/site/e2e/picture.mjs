// Writes docs/demo.png, the picture in the README: the page Remember down to its last panel.
import { fileURLToPath } from 'node:url';
import { launch } from './harness.mjs';
import { serve } from './server.mjs';

const PICTURE = '#/remember?view=reads&token=27&weights=trained&archs=attention,linear_attention,mamba2,rglru,moh,yaad';
const path = fileURLToPath(new URL('../../../docs/demo.png', import.meta.url));
const server = await serve(fileURLToPath(new URL('../dist', import.meta.url)), '/');
const browser = await launch({ webgpu: false, viewport: { width: 1240, height: 1500 }, colorScheme: 'light' });
try {
  const page = await browser.context.newPage();
  await page.goto(server.url + PICTURE);
  await page.waitForFunction(() => document.querySelector('.engine')?.dataset.phase === 'ready' && document.querySelectorAll('.skeleton, .panel[aria-busy="true"]').length === 0, undefined, { timeout: 120_000 });
  await page.waitForTimeout(500);
  const bottom = await page.evaluate(() => Math.max(...[...document.querySelectorAll('.panel')].map((p) => p.getBoundingClientRect().bottom)));
  await page.screenshot({ path, clip: { x: 0, y: 0, width: 1240, height: Math.ceil(bottom) + 16 } });
} finally {
  await browser.close();
  server.close();
}
