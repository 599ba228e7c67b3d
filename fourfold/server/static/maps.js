// Pictures of an inspection: experts by layer, context by layer, and the text that indexers picked.

import { h, svg } from "./dom.js";

const KINDS = { swa: "SWA", csa: "CSA", hca: "HCA" };

/** A row for each layer, a column for each expert; the darker, the more weight. */
export function expertMap({ layers, n_routed_experts: experts }) {
  const most = Math.max(...layers.flatMap((layer) => layer.weights), 1e-9);
  const width = Math.max(0.9, experts / 110); // what is narrower could not be seen
  return map(layers, experts, "Experts of each layer", (layer) => layer.experts.map((expert, k) => svg("rect", {
    class: "chosen", x: expert + (1 - width) / 2, width, height: 1, opacity: 0.3 + (0.7 * layer.weights[k]) / most,
  }, svg("title", {}, `expert ${expert}, weight ${layer.weights[k].toFixed(3)}`))));
}

/** A row for each layer, the context from left to right. */
export function contextMap({ layers, position, sliding_window: window }) {
  const least = position / 500;
  return map(layers, position, "What each layer saw of the context", (layer) => {
    const seen = [[Math.max(position - window, 0), position, "seen", "its window"]];
    if (layer.spans === null && layer.visible) {
      seen.push([0, layer.visible * layer.ratio, "seen", `all ${layer.visible} entries`]);
    }
    for (const [from, to] of layer.spans ?? []) seen.push([from, to, "chosen", `tokens ${from} to ${to - 1}`]);
    return seen.map(([from, to, kind, about]) => svg("rect", {
      class: kind, x: from, width: Math.max(to - from, least), height: 1,
    }, svg("title", {}, about)));
  });
}

/** The text before the token; the darker, the more indexers chose it. */
export function contextText({ layers, position, token_strs: texts }) {
  const indexed = layers.filter((layer) => layer.spans !== null);
  const times = new Array(position).fill(0);
  for (const { spans } of indexed) {
    for (const [from, to] of spans) {
      for (let at = from; at < Math.min(to, position); at += 1) times[at] += 1;
    }
  }
  const element = h("div", { class: "context", tabindex: "0", role: "region", "aria-label": "The context" });
  for (let at = 0; at < position;) {
    let end = at + 1;
    while (end < position && times[end] === times[at]) end += 1;
    const piece = h("span", {
      title: `chosen by ${times[at]} of ${indexed.length} indexers`,
      class: times[at] ? "picked" : null,
    }, texts.slice(at, end).join(""));
    piece.style.setProperty("--heat", times[at] / indexed.length);
    element.append(piece);
    at = end;
  }
  return element;
}

/** The same in words and numbers. */
export function tableOf({ layers }) {
  const rows = layers.map((layer, i) => h("tr", {},
    h("th", { scope: "row" }, String(i)),
    h("td", {}, KINDS[layer.kind] + (layer.hashed ? ", hash" : "")),
    h("td", {}, layer.experts.map((expert, k) => `${expert} (${layer.weights[k].toFixed(2)})`).join(", ")),
    h("td", {}, layer.visible ? `${layer.chosen} of ${layer.visible}` : "–")));
  const head = ["Layer", "Kind", "Experts (weight)", "Entries seen"];
  return h("div", { class: "table" }, h("table", {},
    h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows)));
}

/** Labelled rows of rectangles that `marks` gives for a layer, over `width` units and one high. */
function map(layers, width, about, marks) {
  const height = Math.min(Math.max(200 / layers.length, 8), 16);
  const rows = layers.map((layer, i) => h("div", { class: "layer" },
    h("span", { class: "label" }, `${i} ${KINDS[layer.kind]}${layer.hashed ? " #" : ""}`),
    svg("svg", { viewBox: `0 0 ${width} 1`, preserveAspectRatio: "none", height },
      svg("rect", { class: "empty", width, height: 1 }), ...marks(layer))));
  const dense = layers.length > 16 ? "map dense" : "map";
  return h("div", { class: dense, role: "img", "aria-label": `${about}; the table below says the same` }, ...rows);
}
