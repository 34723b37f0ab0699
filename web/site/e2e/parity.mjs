// Runs the parity matrix in the browser, architecture by architecture, and keeps what it finds for the Parity page.
// `npm run parity -- [--only cpu|gpu] [--archs A,B] [--missing] [--minutes N] [--file FILE]`
// What is in the file already stays, but for the architectures that run again; `--missing` runs only those not in it.
import { createHash } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { launch } from './harness.mjs';
import { serve } from './server.mjs';

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    archs: { type: 'string' },
    missing: { type: 'boolean', default: false },
    minutes: { type: 'string', default: '60' },
    file: { type: 'string', default: fileURLToPath(new URL('../public/parity.json', import.meta.url)) },
  },
});
const PATIENCE = 150_000;
const deadline = Date.now() + 60_000 * Number(values.minutes);
/** Tells builds of the library apart. */
const module = createHash('sha256').update(await readFile(new URL('../dist/pkg/seqzoo_web_bg.wasm', import.meta.url))).digest('hex').slice(0, 8);
const server = await serve(fileURLToPath(new URL('../dist', import.meta.url)), '/');

for (const backend of ['cpu', 'webgpu']) {
  if (values.only !== undefined && (values.only === 'gpu') !== (backend === 'webgpu')) continue;
  const browser = await launch({ webgpu: backend === 'webgpu' });
  try {
    const page = await browser.context.newPage();
    page.on('console', (m) => m.type() === 'error' && console.log(`  console: ${m.text().slice(0, 300)}`));
    await page.goto(`${server.url}#/parity?on=${backend}&backend=${backend}`);
    await page.waitForFunction((b) => document.querySelector('.engine')?.dataset.phase === 'ready' && document.querySelector('.engine select')?.value === b, backend, { timeout: PATIENCE });
    await page.waitForFunction(() => document.querySelectorAll('.chooser input').length > 30, undefined, { timeout: PATIENCE });
    const all = await page.$$eval('.chooser input', (boxes) => boxes.map((box) => box.value));
    const version = browser.context.browser()?.version() ?? '';
    const agent = await page.evaluate(() => navigator.userAgent.match(/\(([^)]*)\)/)?.[1] ?? '');
    const on = backend === 'cpu' ? `one thread of ${cpus()[0]?.model.trim()}` : `SwiftShader, a graphics device in software, on ${cpus()[0]?.model.trim()}`;
    for (const arch of values.archs?.split(',') ?? all) {
      const before = await kept();
      if (values.missing && before.rows.some((r) => r.arch === arch && r.backend === backend)) continue;
      if (Date.now() > deadline) break;
      const start = performance.now();
      const rows = await check(page, arch, backend);
      const run = { backend, recorded: new Date().toISOString().slice(0, 10), module, browser: `Chromium ${version}`, system: agent, on };
      const now = await kept();
      await keep({
        runs: assign(now.runs, run, arch),
        rows: [...now.rows.filter((r) => r.arch !== arch || r.backend !== backend), ...rows],
      }, all);
      const bad = rows.filter((r) => !r.ok);
      console.log(`${backend} ${arch}: ${rows.length} rows, ${bad.length} bad, ${((performance.now() - start) / 1000).toFixed(0)} s`);
      for (const r of bad) console.log(`  ${r.subject} ${r.check}: ${r.error} of ${r.limit} ${r.note ?? ''}`);
    }
  } finally {
    await browser.close();
  }
}
server.close();

/** Presses the page's button for one architecture. The engine stays, so that its pipelines do. */
async function check(page, arch, backend) {
  await page.evaluate((hash) => (window.location.hash = hash), `#/parity?on=${backend}&archs=${arch}&backend=${backend}`);
  await page.waitForFunction((a) => [...document.querySelectorAll('.chooser input:checked')].map((b) => b.value).join() === a, arch, { timeout: PATIENCE });
  await page.getByRole('button', { name: 'Run the checks' }).click();
  await page.waitForFunction((a) => /^(done|stopped.*)$/.test(document.querySelector('main .quiet[role=status]')?.textContent ?? '') && window.seqzoo.parityRows().some((r) => r.arch === a), arch, { timeout: 7_200_000, polling: 300 });
  const words = await page.locator('main .quiet[role=status]').textContent();
  if (words !== 'done') throw new Error(`${arch}: ${words}`);
  return page.evaluate(() => window.seqzoo.parityRows());
}

async function kept() {
  return JSON.parse(await readFile(values.file, 'utf8')) ?? { runs: [], rows: [] };
}

/** The runs once an architecture belongs to `run` and to none of the others of its backend. */
function assign(runs, run, arch) {
  const same = (r) => Object.keys(run).every((key) => r[key] === run[key]);
  const left = runs.map((r) => (r.backend === run.backend ? { ...r, archs: r.archs.filter((a) => a !== arch) } : r));
  const mine = left.find(same) ?? { ...run, archs: [] };
  return [...left.filter((r) => r !== mine && r.archs.length > 0), { ...mine, archs: [...mine.archs, arch] }];
}

/** One row a line, in the order of the registry. */
async function keep({ runs, rows }, order) {
  const sorted = rows.toSorted((a, b) => a.backend.localeCompare(b.backend) || order.indexOf(a.arch) - order.indexOf(b.arch));
  const lines = (all) => all.map((row) => JSON.stringify({ ...row, error: Number.isFinite(row.error) ? Number(row.error.toPrecision(3)) : null })).join(',\n');
  const dated = runs.toSorted((a, b) => a.backend.localeCompare(b.backend) || b.recorded.localeCompare(a.recorded));
  await writeFile(values.file, `{"runs":${JSON.stringify(dated)},"rows":[\n${lines(sorted)}\n]}\n`);
}
