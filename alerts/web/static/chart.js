// What all curves of the page share: colours of the theme, axes in UTC, a plot as wide as its box.
"use strict";
const chart = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const line = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const steps = [[86400, "{YYYY}-{MM}-{DD}"], [3600, "{HH}:{mm}\n{MM}-{DD}"], [60, "{HH}:{mm}"], [1, "{HH}:{mm}:{ss}"]];
  const times = { ...line, values: steps.map((v) => [v[0], v[1], null, null, null, null, null, null, 1]) };
  const draw = (box, height, data, series, more) => {
    const size = () => ({ width: box.clientWidth, height });
    const plot = new uPlot({
      ...size(),
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
      axes: [times, { ...line }],
      cursor: { drag: { x: true, y: false } },
      series,
      ...more,
    }, data, box);
    addEventListener("resize", () => plot.setSize(size()));
    return plot;
  };
  const fill = (plot, left, top, width, height, name) => {
    plot.ctx.save();
    plot.ctx.fillStyle = colour(name);
    plot.ctx.fillRect(left, top, width, height);
    plot.ctx.restore();
  };
  return { colour, draw, fill };
})();
