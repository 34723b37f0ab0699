// What a visitor does, page by page.
import { readFile } from 'node:fs/promises';
import { accessible, expect, watch } from './harness.mjs';

const LONG = 150_000;
const ready = (page, backend = 'cpu') =>
  page.waitForFunction((b) => document.querySelector('.engine')?.dataset.phase === 'ready' && document.querySelector('.engine select')?.value === b, backend, { timeout: LONG });
const live = (page) => page.waitForFunction(() => performance.getEntriesByName('seqzoo:live').length > 0 && document.querySelectorAll('.panel[aria-busy="true"]').length === 0, undefined, { timeout: LONG });

/** Text of the panels and of the inspector: what an address must restore. */
const seen = (page) =>
  page.evaluate(() =>
    [...document.querySelectorAll('.panel, .inspector output, .inspector-number span, .strip .now, .tab[aria-pressed="true"]')]
      .map((node) => {
        const copy = node.cloneNode(true);
        for (const spoken of copy.querySelectorAll('.sr')) spoken.remove();
        return copy.textContent;
      })
      .join('\n'),
  );

/** In the page: the largest relative L2 error of any tensor of a recording, and how many numbers there were. */
async function distance(file) {
  const { call } = window.seqzoo;
  let [worst, compared, where] = [0, 0, ''];
  for (const m of file.models) {
    const { handle } =
      m.spec?.kind === 'shipped'
        ? await call('openWeights', [new Uint8Array(await (await fetch(`models/${m.spec.file}`)).arrayBuffer())])
        : await call('openPreset', [m.spec?.config ?? m.arch.name, m.spec?.seed ?? file.seed ?? 0]);
    const trace = await call('read', [handle, file.text]);
    const states = await call('states', [handle, file.text, 0]);
    const pairs = [];
    m.trace.layers.forEach((layer, l) => {
      const live = trace.layers[l];
      layer.attention?.forEach((g, h) => pairs.push(['attention', g.values, live.attention[h].values]));
      layer.gates?.forEach((g, h) => pairs.push([`gate ${g.name}`, g.grid.values, live.gates[h].grid.values]));
      layer.spectrum?.forEach((g, h) => {
        pairs.push(['real parts', g.re.values, live.spectrum[h].re.values]);
        if (g.im) pairs.push(['imaginary parts', g.im.values, live.spectrum[h].im.values]);
      });
      for (const key of ['router', 'memoryLoss', 'memoryNorm']) if (layer[key]) pairs.push([key, layer[key].values, live[key].values]);
    });
    m.states.forEach((slots, t) => slots.forEach((s, i) => pairs.push([`state ${i} after ${t + 1}`, s.values, states[t][i].values])));
    for (const [part, a, b] of pairs) {
      if (a.length !== b.length) throw new Error(`${m.arch.name}: ${a.length} numbers recorded, ${b.length} live`);
      let [difference, size] = [0, 0];
      for (let i = 0; i < a.length; i += 1) {
        difference += (a[i] - b[i]) ** 2;
        size += b[i] ** 2;
      }
      compared += a.length;
      const error = Math.sqrt(difference / Math.max(size, 1e-12));
      if (error > worst) [worst, where] = [error, `${m.arch.name}, ${part}, size ${Math.sqrt(size).toExponential(1)}`];
    }
    await call('close', [handle]);
  }
  return { worst, compared, where };
}

export async function pages({ report, browser, server, webgpu }) {
  const { context } = browser;
  const name = (text) => `${webgpu ? 'gpu' : 'cpu'}: ${text}`;
  const page = await context.newPage();
  const problems = watch(page, new URL(server.url).origin);
  const open = async (hash) => {
    await page.goto('about:blank');
    await page.goto(server.url + hash);
  };

  await report.check(name('first picture and live model'), async () => {
    server.sent.length = 0;
    const start = performance.now();
    await page.goto(server.url);
    await page.waitForFunction(() => performance.getEntriesByName('seqzoo:first-picture').length > 0, undefined, { timeout: LONG });
    const picture = await page.evaluate(() => performance.getEntriesByName('seqzoo:first-picture')[0].startTime / 1000);
    const files = server.sent.filter((s) => !/\.wasm$|pkg\//.test(s.path));
    const bytes = files.reduce((sum, s) => sum + s.bytes, 0);
    await ready(page);
    await live(page);
    const alive = (performance.now() - start) / 1000;
    const missing = server.sent.filter((s) => s.missing).map((s) => s.path).filter((p) => p !== 'models/index.json' && p !== 'parity.json');
    expect(missing.length === 0, `not found: ${missing.join(', ')}`);
    const notes = [report.number(name('first picture'), picture, 2, 's'), report.number(name('transferred before it, gzip'), bytes / 1e6, 2, 'MB'), report.number(name('live model'), alive, 20, 's')];
    return notes.join(', ');
  });

  for (const [what, file, limit] of [
    ['the picture that comes with the page (rounded)', '../dist/first.json', 1e-3],
    ['what the native library computes', './reference.json', 1e-5],
  ]) {
    await report.check(name(`${what} equals the live numbers`), async () => {
      if (page.url() === 'about:blank') await page.goto(server.url);
      await ready(page);
      const recorded = JSON.parse(await readFile(new URL(file, import.meta.url), 'utf8'));
      const { worst, compared, where } = await page.evaluate(distance, recorded);
      expect(compared > 1000, `only ${compared} numbers compared`);
      return `${compared} numbers, ${report.number(name(`${what}: relative L2 error over its limit (${where})`), worst / limit, 1, `of ${limit}`)}`;
    });
  }

  await report.check(name('typing changes every panel'), async () => {
    await page.fill('textarea', 'hello, hello');
    await page.waitForFunction(() => document.querySelectorAll('.strip span').length === 12, undefined, { timeout: LONG });
    await live(page);
    expect((await page.locator('.panel .error').count()) === 0, `a panel has an error: ${await page.locator('.panel .error').allTextContents()}`);
    // The address is written a little later, so that typing does not fill the history.
    await page.waitForFunction(() => location.href.includes('text=hello'), undefined, { timeout: 5000 });
  });

  await report.check(name('stepping with the keyboard, the mouse and play'), async () => {
    const strip = page.locator('.strip');
    await strip.focus();
    await page.keyboard.press('Home');
    expect((await strip.getAttribute('aria-valuenow')) === '1', 'Home does not go to the first token');
    const first = await page.locator('.panel footer strong').first().textContent();
    for (let i = 0; i < 3; i += 1) await page.keyboard.press('ArrowRight');
    expect((await strip.getAttribute('aria-valuenow')) === '4', 'the arrow does not step');
    expect((await page.locator('.panel footer strong').first().textContent()) !== first, 'the cache did not grow');
    await page.locator('.strip span').nth(8).click();
    expect((await strip.getAttribute('aria-valuenow')) === '9', 'a click does not step');
    await page.getByRole('button', { name: 'Play', exact: true }).click();
    await page.waitForFunction(() => document.querySelector('.strip').getAttribute('aria-valuenow') === '12', undefined, { timeout: 20_000 });
  });

  await report.check(name('every view, and where a number comes from'), async () => {
    const asked = [];
    for (const view of ['Change', 'Reads', 'Gates', 'Eigenvalues', 'Half-life', 'Memory', 'State']) {
      await page.getByRole('button', { name: view, exact: true }).click();
      await live(page);
      expect((await page.locator('.panel .error').count()) === 0, `${view}: an error`);
      const heat = page.locator('.panel', { has: page.getByRole('heading', { name: view === 'Gates' ? 'Mamba-2' : 'Linear attention' }) }).locator('.heat').first();
      if ((await heat.count()) === 0) continue;
      await heat.focus();
      await page.keyboard.press('ArrowRight');
      await page.waitForSelector('.inspector output');
      if (view === 'Reads' || view === 'State') {
        await page.waitForSelector('.inspector dl div', { timeout: LONG });
        asked.push(await page.locator('.inspector-why code').first().textContent());
      }
    }
    expect(asked.length === 2 && asked.every((a) => a.length > 5), `no equations: ${asked}`);
    return asked.join(' | ');
  });

  await report.check(name('the address restores the view'), async () => {
    await open('#/remember?text=abcabcabc&token=5&view=reads&head=1&archs=linear_attention,gated_deltanet,mamba2&seed=3&weights=drawn');
    await ready(page);
    await live(page);
    const heat = page.locator('.panel .heat').nth(1);
    await heat.focus();
    await page.keyboard.press('ArrowLeft');
    await page.keyboard.press('ArrowUp');
    await page.keyboard.press('Enter');
    await page.waitForSelector('.inspector dl div', { timeout: LONG });
    await page.waitForTimeout(400);
    const [before, address] = [await seen(page), page.url()];
    const other = await context.newPage();
    await other.goto(address);
    await ready(other);
    await live(other);
    await other.waitForTimeout(600);
    const after = await seen(other);
    await other.close();
    expect(after === before, `was\n${before}\nis\n${after}`);
  });

  await report.check(name('whichever model is read first, all show the same token'), async () => {
    const panels = async (late) => {
      const slow = (route) => setTimeout(() => void route.continue(), 2000);
      if (late !== undefined) await page.route(`**/models/text-${late}.safetensors`, slow);
      await open('#/remember?view=reads&token=5&weights=trained&archs=attention,mamba2,gated_deltanet');
      await ready(page);
      await page.waitForFunction(() => document.querySelectorAll('.panel .strongest').length === 3, undefined, { timeout: LONG });
      await page.waitForTimeout(300);
      if (late !== undefined) await page.unroute(`**/models/text-${late}.safetensors`, slow);
      return seen(page);
    };
    const [together, attention, mamba2] = [await panels(), await panels('attention'), await panels('mamba2')];
    expect(attention === together, `with the first model late:\n${attention}\nnot\n${together}`);
    expect(mamba2 === together, `with another model late:\n${mamba2}\nnot\n${together}`);
  });

  await report.check(name('scrubbing 256 tokens'), async () => {
    await open('#/remember');
    await ready(page);
    await page.getByRole('button', { name: '256 letters' }).click();
    await page.waitForFunction(() => document.querySelectorAll('.strip span').length === 256, undefined, { timeout: LONG });
    await live(page);
    await page.waitForFunction(() => document.querySelectorAll('.skeleton').length === 0, undefined, { timeout: LONG });
    const notes = [];
    for (const view of ['State', 'Change', 'Reads']) {
      await page.getByRole('button', { name: view, exact: true }).click();
      await page.waitForTimeout(300);
      // From the start of a frame to the task after it: script, style, layout and paint of that frame.
      const frames = await page.evaluate(async () => {
        const strip = document.querySelector('.strip');
        const key = (name) => strip.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true }));
        key('Home');
        const channel = new MessageChannel();
        const durations = [];
        for (let i = 0; i < 255; i += 1) {
          await new Promise((resolve) =>
            requestAnimationFrame(() => {
              performance.mark('frame-start');
              key('ArrowRight');
              channel.port2.onmessage = () => {
                durations.push(performance.measure('frame', 'frame-start').duration);
                resolve();
              };
              channel.port1.postMessage(0);
            }),
          );
        }
        return durations.sort((a, b) => a - b);
      });
      notes.push(`${view} p95 ${frames[Math.floor(frames.length * 0.95)].toFixed(1)} ms, ${report.number(name(`median frame while scrubbing, ${view}`), frames[Math.floor(frames.length / 2)], 16, 'ms')}`);
    }
    return notes.join('; ');
  });

  await report.check(name('compare: ask, other pairs, the curve'), async () => {
    await open('#/compare?pairs=4');
    await ready(page);
    await page.waitForFunction(() => document.querySelectorAll('.data tbody tr').length > 0 && !document.querySelector('.data tbody').textContent.includes('…'), undefined, { timeout: LONG });
    const rows = await page.locator('.data tbody tr').count();
    const right = await page.locator('.data .right-answer').count();
    await page.locator('.pair button').nth(2).click();
    await page.waitForFunction(() => !document.querySelector('.data tbody').textContent.includes('…'), undefined, { timeout: LONG });
    await page.getByRole('button', { name: 'Ask all' }).click();
    await page.waitForFunction(() => document.querySelector('.chart') !== null && [...document.querySelectorAll('button')].some((b) => b.textContent === 'Ask all' && !b.disabled), undefined, { timeout: LONG });
    expect(right > 0, 'no model knows one of four pairs');
    return `${right} of ${rows} models know one of 4 pairs`;
  });

  await report.check(name('compare: copy a text typed by hand'), async () => {
    await open('#/compare?task=copy');
    await ready(page);
    await page.fill('.planted', 'Hello, World');
    expect((await page.inputValue('.planted')) === 'hello world', 'what the models have no letters for is not left out');
    const wanted = 'hello␣world';
    await page.waitForFunction((n) => [...document.querySelectorAll('.said')].filter((s) => s.textContent.length === n).length >= 3, wanted.length, { timeout: LONG });
    const said = await page.locator('.said').allTextContents();
    expect(said.includes(wanted), `no model says ${wanted}: ${said}`);
    const marked = await page.$$eval('.said', (all) => all.map((s) => [...s.children].map((c) => (c.classList.contains('wrong') ? '✗' : c.textContent)).join('')));
    expect(marked.every((m, i) => m === [...said[i]].map((c, j) => (c === wanted[j] ? c : '✗')).join('')), `wrong letters are marked as ${marked}`);
    await page.getByRole('button', { name: 'Random letters' }).click();
    await page.waitForFunction(() => [...document.querySelectorAll('.said')].filter((s) => s.textContent.length === 16).length >= 3, undefined, { timeout: LONG });
    await accessible(page);
    return said.join(', ');
  });

  const losses = () => page.evaluate(() => [...document.querySelectorAll('.data tbody tr')].map((r) => ({ arch: r.dataset.arch, loss: Number(r.querySelector('[data-what=loss]')?.textContent) })));

  await report.check(name('learn: the loss falls, pause, look inside, reset'), async () => {
    const backend = webgpu ? 'webgpu' : 'cpu';
    // In software, a step on WebGPU takes a second.
    const settings = webgpu ? 'archs=linear_attention,lstm&steps=24&width=16' : 'archs=attention,gated_deltanet&steps=120&width=32';
    await open(`#/learn?${settings}&task=text&depth=1&lr=0.01&backend=${backend}`);
    await ready(page, backend);
    await page.getByRole('button', { name: 'Train', exact: true }).click();
    await page.waitForFunction(() => Number(document.querySelector('[data-what=loss]')?.textContent) > 0, undefined, { timeout: LONG });
    const before = await losses();
    await page.getByRole('button', { name: 'Pause' }).click();
    await page.getByRole('button', { name: 'Continue' }).click();
    await page.waitForFunction(() => [...document.querySelectorAll('button')].some((b) => b.textContent === 'Train again'), undefined, { timeout: 2 * LONG });
    const after = await losses();
    expect((await page.locator('.error').count()) === 0, `an error: ${await page.locator('.error').allTextContents()}`);
    for (const [i, { arch, loss }] of after.entries()) expect(loss < 0.9 * (before[i].loss || before[0].loss), `${arch}: the loss went from ${before[i].loss} to ${loss}`);
    await page.getByRole('button', { name: 'look inside' }).nth(1).click();
    await page.waitForSelector('.panel .heat', { timeout: LONG });
    await accessible(page);
    await page.getByRole('button', { name: 'Reset' }).click();
    await page.waitForFunction(() => document.querySelectorAll('.data').length === 0);
    return after.map((a) => `${a.arch} ${a.loss}`).join(', ');
  });

  await report.check(name('speed: drawn as it measures'), async () => {
    await open('#/speed?longest=128&archs=attention,lstm');
    await ready(page);
    await page.getByRole('button', { name: 'Measure' }).click();
    await page.waitForSelector('.chart circle', { timeout: LONG });
    await page.waitForFunction(() => [...document.querySelectorAll('button')].some((b) => b.textContent === 'Measure' && !b.disabled), undefined, { timeout: 2 * LONG });
    const points = await page.locator('.chart circle').count();
    expect(points >= (webgpu ? 18 : 12), `${points} points`);
    await accessible(page);
    return `${points} points`;
  });

  await report.check(name('explain: every idea'), async () => {
    await open('#/explain');
    await ready(page);
    const titles = await page.locator('.topics button').allTextContents();
    for (const title of titles) {
      await page.locator('.topics').getByRole('button', { name: title, exact: true }).click();
      await page.waitForFunction(() => document.querySelectorAll('.skeleton').length === 0 && document.querySelectorAll('.stage').length > 0, undefined, { timeout: LONG });
      expect((await page.locator('.error').count()) === 0, `${title}: ${await page.locator('.error').allTextContents()}`);
      await accessible(page);
    }
    return `${titles.length} ideas`;
  });

  await report.check(name('parity: the matrix in the browser'), async () => {
    const on = webgpu ? 'webgpu' : 'cpu';
    // On the CPU the whole matrix takes a minute or two; WebGPU in software takes minutes for one architecture, and
    // `npm run parity` records them all.
    const archs = webgpu ? (process.env.PARITY_ARCHS_GPU ?? 'simple_gla') : process.env.PARITY_ARCHS;
    await open(`#/parity?on=${on}${archs === undefined ? '' : `&archs=${archs}`}`);
    await ready(page);
    await page.waitForFunction(() => document.querySelectorAll('.chooser input').length > 30 && document.querySelectorAll('.verdicts details').length > 0, undefined, { timeout: LONG });
    const [listed, known, words0] = await page.evaluate(() => [document.querySelectorAll('.verdicts details').length, document.querySelectorAll('.chooser input').length, document.querySelector('main').textContent]);
    expect(listed === known, `${listed} of ${known} architectures are listed`);
    expect(/recorded on \d{4}-\d\d-\d\d in Chromium/.test(words0), 'the page does not say when and where it was recorded');
    if (archs === undefined) await page.getByRole('button', { name: /^all \d\d+$/ }).click();
    await page.getByRole('button', { name: 'Run the checks' }).click();
    await page.waitForFunction(() => /^(done|stopped.*)$/.test(document.querySelector('main .quiet[role=status]')?.textContent ?? ''), undefined, { timeout: 6 * LONG });
    const words = await page.locator('main .quiet[role=status]').textContent();
    expect(words === 'done', words);
    const totals = await page.$$eval('[data-backend]', (all) => all.map((n) => ({ ...n.dataset })));
    expect(totals.length === 1 && totals[0].backend === on, `ran on ${totals.map((t) => t.backend)}`);
    expect(totals.every((t) => t.bad === '0' && Number(t.total) > 10), JSON.stringify(totals));
    await accessible(page);
    return totals.map((t) => `${t.backend} ${t.total} rows`).join(', ');
  });

  if (webgpu) {
    await report.check(name('a lost device: notice, CPU, training goes on'), async () => {
      await open('#/learn?archs=lstm&steps=40&width=16&depth=1&backend=webgpu');
      await ready(page, 'webgpu');
      await page.getByRole('button', { name: 'Train', exact: true }).click();
      await page.waitForFunction(() => Number(document.querySelector('[data-what=loss]')?.textContent) > 0, undefined, { timeout: LONG });
      const had = await page.evaluate(() => window.seqzoo.call('loseDevice', [], { urgent: true }).catch((e) => e.message));
      await page.waitForSelector('.notices p', { timeout: 30_000 });
      const notice = await page.locator('.notices p').first().textContent();
      expect(/CPU/.test(notice), `notice: ${notice}`);
      await ready(page, 'cpu');
      await page.waitForFunction(() => [...document.querySelectorAll('button')].some((b) => b.textContent === 'Train again'), undefined, { timeout: LONG });
      expect(Number((await losses())[0].loss) > 0, 'no training after the loss');
      return `${had}; ${notice}`;
    });
  } else {
    await report.check(name('WebGPU asked for where there is none: notice and CPU'), async () => {
      await open('#/remember?backend=webgpu');
      await page.waitForSelector('.notices p', { timeout: LONG });
      const notice = await page.locator('.notices p').first().textContent();
      expect(/WebGPU is not available/.test(notice), notice);
      await ready(page, 'cpu');
      await live(page);
      expect((await page.locator('.panel canvas').count()) > 0, 'no picture');
    });
  }

  await report.check(name('accessibility, light and dark'), async () => {
    for (const hash of ['#/remember', '#/remember?view=reads&theme=dark', '#/remember?view=gates', '#/remember?view=memory&theme=dark', '#/compare', '#/compare?task=copy&theme=dark', '#/learn?theme=dark', '#/speed', '#/explain?theme=dark', '#/parity?theme=dark']) {
      await open(hash);
      await ready(page);
      await page.waitForTimeout(500);
      try {
        await accessible(page);
      } catch (error) {
        throw new Error(`${hash}: ${error.message}`);
      }
    }
  });

  await report.check(name('phone width: nothing sticks out'), async () => {
    await page.setViewportSize({ width: 360, height: 740 });
    for (const hash of ['#/remember', '#/remember?view=reads', '#/remember?view=memory', '#/compare', '#/compare?task=copy', '#/learn', '#/speed', ...['state', 'softmax', 'decay', 'delta', 'miras', 'lightning', 'moh'].map((topic) => `#/explain?topic=${topic}`), '#/parity']) {
      await open(hash);
      await ready(page);
      // What is still computed takes less room than its picture.
      await page.waitForFunction(() => document.querySelectorAll('.skeleton').length === 0, undefined, { timeout: LONG });
      await page.waitForTimeout(400);
      const over = await page.evaluate(() => {
        const beyond = [...document.querySelectorAll('main *')].find((e) => e.getBoundingClientRect().right > window.innerWidth + 1);
        return { px: document.documentElement.scrollWidth - window.innerWidth, by: beyond?.outerHTML.slice(0, 120) };
      });
      expect(over.px <= 1, `${hash} is ${over.px} px too wide: ${over.by}`);
    }
    await page.setViewportSize({ width: 1360, height: 900 });
  });

  await report.check(name('no errors on the console, nothing asked elsewhere'), async () => {
    const real = problems.filter((p) => !/models\/index\.json|parity\.json/.test(p));
    expect(real.length === 0, [...new Set(real)].slice(0, 8).join('\n'));
  });
  await page.close();
}
