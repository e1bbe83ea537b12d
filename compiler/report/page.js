"use strict";
// Tooltips on charts: the values of every curve at the step under the pointer. The page is complete without it.
for (const svg of document.querySelectorAll("svg.chart")) {
  const { x: [low, high], lines } = JSON.parse(svg.dataset.chart);
  const [left, right] = svg.dataset.box.split(" ").map(Number);
  const figure = svg.parentElement;
  const cross = document.createElementNS(svg.namespaceURI, "path");
  const tip = document.createElement("div");
  cross.setAttribute("class", "cross");
  tip.className = "tip";
  const format = (y) => (Math.abs(y) >= 1e5 || (y && Math.abs(y) < 1e-3) ? y.toExponential(2) : String(+y.toPrecision(4)));
  const nearest = (points, at) => points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a), points[0]);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const px = Math.min(Math.max((event.clientX - box.left) * scale, left), right);
    const at = low + ((px - left) / (right - left)) * (high - low);
    const shown = lines.filter((l) => l.points.length).map((l) => [l.name, nearest(l.points, at)]);
    if (!shown.length) return;
    cross.setAttribute("d", `M${px} 0V${svg.viewBox.baseVal.height - 30}`);
    svg.append(cross);
    tip.textContent = [`step ${Math.round(at)}`, ...shown.map(([n, p]) => `${n}  ${format(p[1])}`)].join("\n");
    figure.append(tip);
    const x = px / scale + (px / scale > box.width / 2 ? -tip.offsetWidth - 12 : 12);
    tip.style.left = `${x}px`;
    tip.style.top = `${box.top - figure.getBoundingClientRect().top + 8}px`;
  });
  svg.addEventListener("pointerleave", () => { cross.remove(); tip.remove(); });
}
