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
  const shade = (plot) => {
    const left = plot.valToPos(told.start, "x", true), right = plot.valToPos(told.end, "x", true);
    chart.fill(plot, left, plot.bbox.top, Math.max(right - left, 2), plot.bbox.height, "--bad-back");
  };
  box.replaceChildren();
  chart.draw(box, 220, [told.time, told.score, told.time.map(() => told.threshold)], [
    { label: box.dataset.time, value: "{YYYY}-{MM}-{DD} {HH}:{mm}" },
    { label: box.dataset.score, stroke: chart.colour("--accent"), width: 1.5, points: { show: false } },
    { label: box.dataset.threshold, stroke: chart.colour("--bad"), width: 1.5, dash: [6, 4], points: { show: false } },
  ], { hooks: { drawClear: [shade] } });
})();
