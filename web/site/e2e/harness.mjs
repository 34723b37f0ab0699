// A browser as it comes, and checks with names.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';

const QUIET = ['--no-sandbox', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
export const GPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'];
/** Off for good: some builds offer a software adapter on their own. */
export const NO_GPU = ['--disable-features=WebGPU,WebGPUService', '--disable-webgpu', '--disable-gpu'];

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

export async function launch({ webgpu, viewport = { width: 1360, height: 900 }, ...options }) {
  const data = await mkdtemp(join(tmpdir(), 'seqzoo-e2e-'));
  const context = await chromium.launchPersistentContext(data, {
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: [...QUIET, ...(webgpu ? GPU : NO_GPU)],
    viewport,
    ...options,
  });
  return { context, close: async () => { await context.close(); await rm(data, { recursive: true, force: true }); } };
}

export class Report {
  checks = [];
  numbers = {};

  /** Only checks whose name has this in it. */
  filter = '';

  /** None whose name has one of these in it. */
  leftOut = [];

  async check(name, body) {
    if (!name.includes(this.filter) || this.leftOut.some((words) => name.includes(words))) return;
    const start = performance.now();
    try {
      const note = await body();
      this.checks.push({ name, ok: true });
      console.log(`ok    ${name}${note === undefined ? '' : `: ${note}`}  (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    } catch (error) {
      this.checks.push({ name, ok: false, error: String(error?.message ?? error) });
      console.log(`FAIL  ${name}: ${String(error?.message ?? error).split('\n').slice(0, 12).join('\n      ')}`);
    }
  }

  /** A number with its limit. Times are printed only: they say as much about the machine as about the page. */
  number(name, value, limit, unit) {
    this.numbers[name] = { value, limit, unit };
    if (!(value <= limit) && unit !== 's' && unit !== 'ms') throw new Error(`${name}: ${value.toFixed(2)} ${unit}, more than ${limit} ${unit}`);
    return `${value.toFixed(2)} ${unit} (${value <= limit ? 'limit' : 'OVER its limit of'} ${limit})`;
  }

  get failed() {
    return this.checks.filter((c) => !c.ok);
  }
}

/** Everything that should not happen on a page. */
export function watch(page, origin) {
  const problems = [];
  page.on('console', (m) => {
    if (m.type() === 'error' || (m.type() === 'warning' && /throttling/i.test(m.text()))) problems.push(`console: ${m.text()} ${m.location().url}`);
  });
  page.on('pageerror', (e) => problems.push(`uncaught: ${e.message}`));
  page.on('request', (r) => {
    if (!r.url().startsWith(origin) && !/^(data|blob):/.test(r.url())) problems.push(`asked elsewhere: ${r.url()}`);
  });
  return problems;
}

export async function accessible(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  if (violations.length > 0) {
    throw new Error(violations.map((v) => `${v.id} (${v.impact}): ${v.nodes.slice(0, 3).map((n) => `${n.html.slice(0, 160)} ${n.any[0]?.message ?? n.all[0]?.message ?? ''}`).join(' | ')}`).join('\n'));
  }
}

export function expect(condition, message) {
  if (!condition) throw new Error(message);
}
