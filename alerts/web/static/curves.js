// Actual against expected values of the tags behind an alert. Without it the table below says the same.
"use strict";
(async () => {
  const all = document.getElementById("curves");
  const answer = await fetch(all.dataset.source, { headers: { Accept: "application/json" } }).catch(() => null);
  if (!answer || !answer.ok) return;
  const told = await answer.json();
  const boxes = all.querySelectorAll(".curve");
  told.tags.forEach((tag, k) => {
    const shade = (plot) => {
      if (tag.low === null || tag.high === null) return;
      const edge = (value) => Math.min(Math.max(plot.valToPos(value, "y", true), plot.bbox.top), plot.bbox.top + plot.bbox.height);
      const top = edge(tag.high);
      chart.fill(plot, plot.bbox.left, top, plot.bbox.width, edge(tag.low) - top, "--calm-back");
    };
    const lines = [
      { label: all.dataset.time, value: "{HH}:{mm}:{ss}" },
      { label: all.dataset.actual, stroke: chart.colour("--accent"), width: 1.5, points: { show: false } },
    ];
    const data = [told.time, tag.actual];
    if (tag.expected) {
      lines.push({ label: all.dataset.expected, stroke: chart.colour("--warn"), width: 1.5, dash: [5, 4], points: { show: false } });
      data.push(tag.expected);
    }
    chart.draw(boxes[k], 150, data, lines, { hooks: { drawClear: [shade] } });
  });
})();
