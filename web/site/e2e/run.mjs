// The whole demo in a browser, with WebGPU and without. `npm run e2e [-- --only gpu|cpu] [--grep WORDS] [--parity FILE] [--no-screenshots]`.
import { mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';
import { launch, Report } from './harness.mjs';
import { pages } from './pages.mjs';
import { serve } from './server.mjs';
import { screenshots } from './screenshots.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const dist = join(here, '..', 'dist');
const argument = (name) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? undefined : process.argv[at + 1];
};

const report = new Report();
report.filter = argument('--grep') ?? '';
const only = argument('--only');
/** Computed on the CPU on either half of the run, so that once is enough. */
const short = ['scrubbing', 'explain', 'accessibility', 'phone width'].map((words) => `gpu: ${words}`);
if (process.argv.includes('--short-gpu')) report.leftOut = short;

for (const webgpu of [true, false]) {
  if (only !== undefined && (only === 'gpu') !== webgpu) continue;
  console.log(`\n${webgpu ? 'WebGPU on SwiftShader' : 'without WebGPU'}`);
  const server = await serve(dist, '/some/folder/');
  const browser = await launch({ webgpu });
  try {
    await pages({ report, browser, server, webgpu });
  } finally {
    await browser.close();
    server.close();
  }
}

if (!process.argv.includes('--no-screenshots')) {
  const folder = join(here, 'screenshots');
  await mkdir(folder, { recursive: true });
  const server = await serve(dist, '/');
  await report.check('screenshots', () => screenshots({ server, folder }));
  server.close();
}

const summary = { checks: report.checks.length, failed: report.failed, numbers: report.numbers };
await writeFile(join(here, 'result.json'), `${JSON.stringify(summary, null, 2)}\n`);
console.log(`\n${report.checks.length - report.failed.length} of ${report.checks.length} checks passed`);
process.exit(report.failed.length === 0 ? 0 : 1);
