// The Speed page, driven without a window, as a device of the scaling suite. `cargo xtask web bench` calls it:
// `npm run bench -- --out FILE [--only cpu|gpu] [--archs A,B] [--tasks prefill,decode,train] [--longest N] [--rounds N] [--note TEXT]`
import { appendFile, readFile, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { launch } from './harness.mjs';
import { header, line, record } from './records.mjs';
import { serve } from './server.mjs';

const PROCESSORS = { x64: 'x86_64', arm64: 'aarch64' };
const defaults = {
  only: '',
  archs: 'attention,linear_attention,gated_deltanet,mamba2,rglru,lstm',
  tasks: 'prefill,decode,train',
  longest: '512',
  rounds: '2',
};
const option = (name) => [name, { type: 'string', ...(defaults[name] !== undefined && { default: defaults[name] }) }];
const { values } = parseArgs({ options: Object.fromEntries(['out', 'note', ...Object.keys(defaults)].map(option)) });
if (values.out === undefined) throw new Error('name a file with --out');

const here = fileURLToPath(new URL('.', import.meta.url));
const asked = Object.keys(defaults).filter((name) => values[name] !== defaults[name]);
const [only, more] = [true, false].map((own) => asked.filter((name) => (name === 'only') === own).map((name) => `--${name} ${values[name]}`));
const backends = { cpu: ['cpu'], gpu: ['webgpu'], '': ['cpu', 'webgpu'] }[values.only];
if (backends === undefined) throw new Error(`--only ${values.only}: cpu or gpu`);

const server = await serve(`${here}/../dist`, '/');
const browser = await launch({ webgpu: backends.includes('webgpu') });
try {
  const page = await browser.context.newPage();
  page.on('pageerror', (error) => console.error(`in the page: ${error.message}`));
  await page.goto(server.url);
  const agent = await page.evaluate(() => navigator.userAgent);
  const { version } = JSON.parse(await readFile(`${here}/../../pkg/package.json`, 'utf8'));
  const threads = availableParallelism();
  const first = {
    version,
    command: ['cargo xtask web bench', ...only, ...(more.length > 0 ? ['--', ...more] : [])].join(' '),
    started: new Date(),
    machine: {
      cpu: cpus()[0]?.model.trim() ?? process.arch,
      threads,
      system: `${process.platform} ${PROCESSORS[process.arch] ?? process.arch}`,
      device: backends.map((b) => `browser-${b}`).join(),
    },
    notes: [
      `user agent: ${agent}`,
      ...(backends.includes('cpu') ? ['browser-cpu: WebAssembly with 128-bit vectors, one thread'] : []),
      ...(backends.includes('webgpu') ? [`browser-webgpu: ${await adapter(page)}`] : []),
      ...(values.note === undefined ? [] : [values.note]),
      'seconds: by the clock of a page, which goes in steps (Chromium: of 0.1 ms)',
      'first_seconds: in a module that may have measured other points before',
    ],
  };
  await writeFile(values.out, line(header(first)), { flag: 'wx' });
  for (let round = 0; round < Number(values.rounds); round += 1) {
    for (const task of values.tasks.split(',')) {
      for (const backend of backends) {
        const rows = await measure(page, { task, backend });
        await appendFile(values.out, rows.map((row) => line(record(row, round))).join(''));
        console.log(`round ${round + 1}, ${task} on ${backend}: ${rows.length} points`);
      }
    }
  }
} finally {
  await browser.close();
  server.close();
}

/** What WebGPU runs on here. */
async function adapter(page) {
  const { vendor, architecture, description } = await page.evaluate(async () => {
    const found = await navigator.gpu?.requestAdapter();
    const { vendor = '', architecture = '', description = '' } = found?.info ?? {};
    return { vendor, architecture, description };
  });
  return [description, vendor, architecture].filter((s) => s !== '').join(', ') || 'an adapter that does not say its name';
}

/** Opens the page with these settings, presses its button, and waits for all rows. */
async function measure(page, { task, backend }) {
  const { archs, longest } = values;
  await page.goto('about:blank');
  await page.goto(`${server.url}#/speed?on=${backend}&mode=${task}&archs=${archs}&longest=${longest}`);
  const button = page.getByRole('button', { name: 'Measure' });
  await page.waitForFunction(() => document.querySelector('.engine')?.dataset.phase === 'ready', undefined, { timeout: 150_000 });
  await button.click();
  // Until the button can be pressed again.
  await page.waitForFunction(() => [...document.querySelectorAll('button')].some((b) => b.textContent === 'Measure' && !b.disabled) && window.seqzoo.speedRows().rows.length > 0, undefined, { timeout: 3_600_000, polling: 500 });
  const words = await page.locator('main [role=status]').first().textContent();
  if (words !== '') throw new Error(words);
  return (await page.evaluate(() => window.seqzoo.speedRows())).rows;
}
