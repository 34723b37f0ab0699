// Tooltips with all values at the nearest point: mouse, touch, or the arrow keys on a focused chart.
const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
tip.setAttribute("role", "status");
document.body.append(tip);
for (const svg of document.querySelectorAll(".chart")) {
  const cross = svg.querySelector(".cross");
  const lines = [...svg.querySelectorAll("g.s")].map((g) => ({
    g, name: g.dataset.name, style: [...g.classList].find((c) => /^s\d/.test(c)), points: JSON.parse(g.dataset.points),
  }));
  svg.querySelectorAll(".mark title").forEach((t) => t.remove());
  const xs = [...new Set(lines.flatMap((l) => l.points.map((p) => p[0])))].sort((a, b) => a - b);
  let at = -1;
  const hide = () => { tip.hidden = true; cross.setAttribute("d", ""); };
  const show = (x) => {
    const rows = lines
      .filter((l) => getComputedStyle(l.g).display !== "none")
      .map((l) => [l, l.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a))])
      .filter(([, p]) => Math.abs(p[0] - x) < 12)
      .sort((a, b) => a[1][1] - b[1][1]);
    if (!rows.length) return hide();
    cross.setAttribute("d", `M${x} 16V316`);
    tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: rows[0][1][2] }));
    for (const [l, p] of rows) {
      const row = document.createElement("div");
      row.className = l.style;
      row.append(Object.assign(document.createElement("i"), { textContent: l.name }), p[3]);
      tip.append(row);
    }
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), k = box.width / svg.viewBox.baseVal.width;
    const left = box.left + x * k, w = tip.offsetWidth;
    tip.style.left = scrollX + Math.max(4, left + w + 20 < innerWidth ? left + 14 : left - w - 14) + "px";
    tip.style.top = scrollY + box.top + 24 + "px";
  };
  svg.addEventListener("pointermove", (e) => {
    const box = svg.getBoundingClientRect();
    const x = ((e.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const best = xs.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a), xs[0]);
    at = xs.indexOf(best);
    show(best);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (e) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (e.key === "Escape") hide();
    if (!move || !xs.length) return;
    e.preventDefault();
    at = Math.min(xs.length - 1, Math.max(0, at + move));
    show(xs[at]);
  });
}
