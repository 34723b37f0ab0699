// Pictures of every page to look at: light, dark and on a phone.
import { join } from 'node:path';
import { launch } from './harness.mjs';

const SHOTS = [
  ['remember', '#/remember?token=20'],
  ['change', '#/remember?view=change&token=20'],
  ['reads', '#/remember?view=reads'],
  ['gates', '#/remember?view=gates'],
  ['eigenvalues', '#/remember?view=eigenvalues'],
  ['halflife', '#/remember?view=halflife'],
  ['memory', '#/remember?view=memory'],
  ['compare', '#/compare?pairs=6'],
  ['copy', '#/compare?task=copy'],
  ['learn', '#/learn?archs=linear_attention,lstm&steps=60&width=16&depth=1'],
  ['speed', '#/speed?longest=128'],
  ...['state', 'softmax', 'decay', 'delta', 'miras', 'lightning', 'moh'].map((t) => [`explain-${t}`, `#/explain?topic=${t}${t === 'lightning' ? '&step=13' : ''}`]),
  ['parity', '#/parity'],
];

export async function screenshots({ server, folder, only, look: wanted }) {
  const looks = [
    ['light', { colorScheme: 'light' }],
    ['dark', { colorScheme: 'dark' }],
    ['phone', { colorScheme: 'light', viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true }],
  ];
  let taken = 0;
  for (const [look, options] of looks) {
    if (wanted !== undefined && look !== wanted) continue;
    const browser = await launch({ webgpu: false, ...options });
    const page = await browser.context.newPage();
    for (const [name, hash] of SHOTS) {
      if (only !== undefined && !only.includes(name)) continue;
      await page.goto('about:blank');
      await page.goto(server.url + hash);
      await page.waitForFunction(() => document.querySelector('.engine')?.dataset.phase === 'ready', undefined, { timeout: 120_000 });
      if (name === 'learn') {
        await page.getByRole('button', { name: 'Train', exact: true }).click();
        await page.waitForFunction(() => [...document.querySelectorAll('button')].some((b) => b.textContent === 'Train again'), undefined, { timeout: 300_000 });
      }
      if (name === 'speed') {
        await page.getByRole('button', { name: 'Measure' }).click();
        await page.waitForFunction(() => [...document.querySelectorAll('button')].some((b) => b.textContent === 'Measure' && !b.disabled), undefined, { timeout: 300_000 });
      }
      await page.waitForFunction(() => document.querySelectorAll('.skeleton').length === 0, undefined, { timeout: 60_000 }).catch(() => undefined);
      await page.waitForFunction(() => !document.querySelector('.data tbody')?.textContent.includes('…'), undefined, { timeout: 60_000 });
      if (name === 'copy') {
        await page.getByRole('button', { name: 'Try all lengths' }).click();
        await page.waitForFunction(() => [...document.querySelectorAll('button')].some((b) => b.textContent === 'Try all lengths') && document.querySelector('.chart circle') !== null, undefined, { timeout: 120_000 });
      }
      if (name === 'reads') {
        await page.locator('.heat').first().focus();
        for (let i = 0; i < 4; i += 1) await page.keyboard.press('ArrowLeft');
        await page.keyboard.press('Enter');
      }
      await page.waitForTimeout(500);
      await page.screenshot({ path: join(folder, `${name}-${look}.png`), fullPage: true });
      taken += 1;
    }
    await browser.close();
  }
  return `${taken} in ${folder}`;
}
