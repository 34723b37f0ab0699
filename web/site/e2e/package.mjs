// The npm package as a stranger meets it: packed, installed into an empty folder, and used as its README says, in
// Node.js and on a page.
import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, launch, watch } from './harness.mjs';
import { serve } from './server.mjs';

const pkg = fileURLToPath(new URL('../../pkg', import.meta.url));
const folder = await mkdtemp(join(tmpdir(), 'seqzoo-package-'));
const run = (program, ...args) => execFileSync(program, args, { cwd: folder, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
try {
  run('npm', 'pack', pkg, '--silent');
  const [packed] = (await readdir(folder)).filter((name) => name.endsWith('.tgz'));
  await writeFile(join(folder, 'package.json'), '{ "name": "stranger", "private": true, "type": "module" }\n');
  run('npm', 'install', '--no-audit', '--no-fund', '--offline', '--silent', `./${packed}`);

  const readme = await readFile(join(folder, 'node_modules/seqzoo/README.md'), 'utf8');
  const example = readme.match(/```js\n([^`]*)```/)?.[1] ?? '';
  expect(example.trim().split('\n').length === 3, `the README's example has not three lines:\n${example}`);
  await writeFile(join(folder, 'use.js'), example);
  const said = run('node', 'use.js');
  expect(/rows: 19/.test(said) && /Float32Array\(361\)/.test(said), `in Node.js the example prints\n${said}`);

  // A page without a bundler: an import map stands for one.
  await writeFile(
    join(folder, 'index.html'),
    `<!doctype html><link rel="icon" href="data:,"><script type="importmap">{"imports":{"seqzoo":"./node_modules/seqzoo/index.js"}}</script>
<script type="module">${example.replace('console.log(', 'globalThis.seen = (')}</script>`,
  );
  const server = await serve(folder, '/');
  const browser = await launch({ webgpu: false });
  try {
    const page = await browser.context.newPage();
    const problems = watch(page, new URL(server.url).origin);
    await page.goto(server.url);
    await page.waitForFunction(() => globalThis.seen !== undefined, undefined, { timeout: 60_000 }).catch(() => undefined);
    const sizes = await page.evaluate(() => globalThis.seen?.map((g) => [g.rows, g.columns, g.values.length]));
    expect(problems.length === 0, problems.join('\n'));
    expect(sizes?.length > 0 && sizes.every((s) => s.join() === '19,19,361'), `on a page the example sees ${JSON.stringify(sizes)}`);
  } finally {
    await browser.close();
    server.close();
  }
  console.log(`${packed}: installed, and used in Node.js and on a page`);
} finally {
  await rm(folder, { recursive: true, force: true });
}
