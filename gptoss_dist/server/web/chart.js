// Lines over the last two minutes, drawn as SVG.
const SPAN_MS = 120_000;
const GAP_MS = 5_000; // a line is broken where nothing was known for longer
const HEIGHT = 120, LEFT = 44, RIGHT = 6, TOP = 8, BOTTOM = 20;

export class LineChart {
  #svg; #name; #top; #points = [];

  // `top`: the fixed end of the scale; without it the scale follows the highest value.
  constructor(svg, name, top = null) {
    this.#svg = svg;
    this.#name = name;
    this.#top = top;
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  // A value for each line, null where it is not known; `at` in milliseconds.
  add(at, values) {
    this.#points.push({ at, values });
    while (at - this.#points[0].at > SPAN_MS) this.#points.shift();
    this.draw();
  }

  draw() {
    const width = this.#svg.clientWidth, points = this.#points;
    if (!width) return;
    const known = points.flatMap((point) => point.values).filter((value) => value !== null);
    const top = this.#top ?? niceTop(Math.max(0, ...known));
    const end = points.at(-1)?.at ?? 0;
    const x = (at) => LEFT + (1 - (end - at) / SPAN_MS) * (width - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
    const lines = (points.at(-1)?.values ?? []).map((_, index) =>
      element("path", { class: `series-${index}`, d: pathOf(points, index, x, y) }));
    this.#svg.replaceChildren(...axes(width, top, y), ...lines);
    this.#svg.setAttribute("aria-label", `${this.#name}: ${inWords(points.at(-1)?.values ?? [])}`);
  }
}

// The next of 1, 2, 5, 10, 20, … that is not below `value`.
export function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= value);
}

function axes(width, top, y) {
  const rules = [0, 0.5, 1].flatMap((share) => [
    element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(share * top), y2: y(share * top) }),
    label(LEFT - 6, y(share * top) + 4, "end", (share * top).toLocaleString("en")),
  ]);
  return [...rules, label(LEFT, HEIGHT - 4, "start", "2 min ago"), label(width - RIGHT, HEIGHT - 4, "end", "now")];
}

function pathOf(points, index, x, y) {
  let path = "", last = null;
  for (const { at, values } of points) {
    const value = values[index];
    if (value === null) { last = null; continue; }
    const step = last === null || at - last > GAP_MS ? "M" : "L";
    path += `${step}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    last = at;
  }
  return path;
}

function inWords(values) {
  const known = values.filter((value) => value !== null);
  return known.length ? `now ${known.map((value) => value.toFixed(1)).join(" and ")}` : "nothing known yet";
}

function label(x, y, anchor, text) {
  const node = element("text", { x, y, "text-anchor": anchor });
  node.textContent = text;
  return node;
}

function element(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
