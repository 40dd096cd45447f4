// The score around an alert with its threshold. Without it the numbers on the page say the same.
"use strict";
(async () => {
  const box = document.getElementById("trend");
  const words = box.querySelector("p");
  const say = (text) => { box.replaceChildren(words); words.textContent = text; };
  say(words.dataset.loading);
  let told;
  try {
    const answer = await fetch(box.dataset.source, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(String(answer.status));
    told = await answer.json();
  } catch {
    say(box.dataset.none);
    return;
  }
  if (!told.time.length) { say(box.dataset.none); return; }
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const shade = (plot) => {
    const left = plot.valToPos(told.start, "x", true), right = plot.valToPos(told.end, "x", true);
    plot.ctx.save();
    plot.ctx.fillStyle = colour("--bad-back");
    plot.ctx.fillRect(left, plot.bbox.top, Math.max(right - left, 2), plot.bbox.height);
    plot.ctx.restore();
  };
  box.replaceChildren();
  const size = () => ({ width: box.clientWidth, height: 220 });
  const plot = new uPlot({
    ...size(),
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
    series: [
      { label: box.dataset.time, value: "{YYYY}-{MM}-{DD} {HH}:{mm}" },
      { label: box.dataset.score, stroke: colour("--accent"), width: 1.5, points: { show: false } },
      { label: box.dataset.threshold, stroke: colour("--bad"), width: 1.5, dash: [6, 4], points: { show: false } },
    ],
    axes: [
      { ...axis, values: [[86400, "{YYYY}-{MM}-{DD}"], [3600, "{HH}:{mm}\n{MM}-{DD}"], [60, "{HH}:{mm}"], [1, "{HH}:{mm}:{ss}"]].map((v) => [v[0], v[1], null, null, null, null, null, null, 1]) },
      { ...axis },
    ],
    cursor: { drag: { x: true, y: false } },
    hooks: { drawClear: [shade] },
  }, [told.time, told.score, told.time.map(() => told.threshold)], box);
  addEventListener("resize", () => plot.setSize(size()));
})();
