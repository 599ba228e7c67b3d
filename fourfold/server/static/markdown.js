// Markdown of a model, which may say anything: nodes are built one by one and texts stay texts, no HTML is
// read, nothing is loaded, and only web and mail addresses become links.

import { copyButton, h } from "./dom.js";

const DEEPEST = 8; // nesting; what lies deeper is plain text
const SCHEMES = new Set(["http:", "https:", "mailto:"]);

/** Shows a text that grows: only the blocks that changed are built again. */
export class Markdown {
  constructor(element) {
    this.element = element;
    this.sources = [];
  }

  show(text) {
    const found = blocks(text.replace(/\r\n?/g, "\n").split("\n"));
    let same = 0;
    while (same < found.length && found[same].source === this.sources[same]) same += 1;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    for (const block of found.slice(same)) this.element.append(built(block, 0));
    this.sources = found.map((block) => block.source);
  }
}

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|)$/;
const DASHES = /^\|?(?: *:?-+:? *\|)*(?: *:?-+:?)? *$/;

/** The blocks of some lines: what they are, and the text that they came from. */
function blocks(lines) {
  const found = [];
  for (let i = 0; i < lines.length;) {
    if (!lines[i].trim()) { i += 1; continue; }
    const [block, end] = blockAt(lines, i);
    found.push({ ...block, source: `${block.kind}\n${lines.slice(i, end).join("\n")}` });
    i = end;
  }
  return found;
}

function blockAt(lines, i) {
  let match;
  if ((match = FENCE.exec(lines[i]))) return fenceAt(lines, i, match[1], match[2]);
  if ((match = HEADING.exec(lines[i]))) {
    return [{ kind: "heading", level: match[1].length, text: match[2].trim().replace(/[ \t]#+$/, "") }, i + 1];
  }
  if (RULE.test(lines[i])) return [{ kind: "rule" }, i + 1];
  if (QUOTE.test(lines[i])) {
    let end = i;
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    return [{ kind: "quote", lines: lines.slice(i, end).map((line) => line.replace(QUOTE, "")) }, end];
  }
  if (ITEM.test(lines[i])) return listAt(lines, i);
  if (isTable(lines, i)) return tableAt(lines, i);
  let end = i + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end)) end += 1;
  return [{ kind: "paragraph", text: lines.slice(i, end).join("\n") }, end];
}

/** Whether a line ends the paragraph before it. */
function begins(lines, i) {
  return [FENCE, HEADING, RULE, QUOTE].some((form) => form.test(lines[i]))
    || ITEM.exec(lines[i])?.[3] || isTable(lines, i);
}

/** A code block, which may not have ended yet. */
function fenceAt(lines, i, mark, language) {
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}[ \\t]*$`);
  let end = i + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const text = lines.slice(i + 1, end).join("\n");
  return [{ kind: "code", language, text }, Math.min(end + 1, lines.length)];
}

function listAt(lines, i) {
  const first = ITEM.exec(lines[i])[2];
  const ordered = /\d/.test(first);
  const items = [];
  let end = i;
  while (end < lines.length) {
    const match = ITEM.exec(lines[end]);
    if (!match || RULE.test(lines[end]) || /\d/.test(match[2]) !== ordered) break;
    const indent = match[1].length + match[2].length + 1;
    const own = [match[3] ?? ""];
    for (end += 1; end < lines.length; end += 1) {
      const line = lines[end];
      const inside = line.search(/\S/) >= Math.min(indent, 2);
      const blank = !line.trim() && lines[end + 1]?.search(/\S/) >= Math.min(indent, 2);
      const lazy = line.trim() && own.at(-1).trim() && !ITEM.test(line) && !begins(lines, end);
      if (!inside && !blank && !lazy) break;
      own.push(line.slice(Math.min(indent, Math.max(line.search(/\S/), 0))));
    }
    items.push(own);
    while (end < lines.length && !lines[end].trim() && ITEM.test(lines[end + 1] ?? "")) end += 1;
  }
  return [{ kind: "list", ordered, start: ordered ? parseInt(first, 10) : null, items }, end];
}

function isTable(lines, i) {
  return lines[i].includes("|") && (lines[i + 1] ?? "").includes("-") && DASHES.test(lines[i + 1].trim())
    && cells(lines[i]).length === cells(lines[i + 1]).length;
}

function tableAt(lines, i) {
  const sides = cells(lines[i + 1]).map((dashes) => {
    if (dashes.endsWith(":")) return dashes.startsWith(":") ? "center" : "right";
    return null;
  });
  let end = i + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end += 1;
  return [{ kind: "table", sides, head: cells(lines[i]), rows: lines.slice(i + 2, end).map(cells) }, end];
}

function cells(line) {
  return line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/)
    .map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function built(block, depth) {
  switch (block.kind) {
    case "heading": return h(`h${Math.min(block.level + 2, 6)}`, {}, ...inline(block.text));
    case "rule": return h("hr");
    case "quote": return h("blockquote", {}, ...nested(block.lines, depth));
    case "code": return code(block);
    case "list": return list(block, depth);
    case "table": return table(block);
    default: return h("p", {}, ...inline(block.text));
  }
}

function nested(lines, depth) {
  if (depth >= DEEPEST) return [lines.join("\n")];
  return blocks(lines).map((block) => built(block, depth + 1));
}

function code(block) {
  const language = block.language || "text";
  return h("figure", { class: "code" },
    h("figcaption", {}, language, copyButton(() => block.text)),
    h("pre", { tabindex: "0", "aria-label": `Code, ${language}` }, h("code", {}, block.text)));
}

function list(block, depth) {
  const items = block.items.map((lines) => {
    const inner = depth >= DEEPEST ? [] : blocks(lines);
    // An item of one paragraph needs no paragraph.
    if (inner.length && inner[0].kind === "paragraph") {
      const rest = inner.slice(1).map((one) => built(one, depth + 1));
      return h("li", {}, ...inline(inner[0].text), ...rest);
    }
    return h("li", {}, ...nested(lines, depth));
  });
  if (!block.ordered) return h("ul", {}, ...items);
  return h("ol", { start: block.start === 1 ? null : block.start }, ...items);
}

function table(block) {
  const row = (tag, texts) => h("tr", {}, ...block.sides.map((side, i) =>
    h(tag, { class: side, scope: tag === "th" ? "col" : null }, ...inline(texts[i] ?? ""))));
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row("th", block.head)),
      h("tbody", {}, ...block.rows.map((texts) => row("td", texts)))));
}

const PAIRS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];
const ADDRESS = /https?:\/\/[^\s<>"'`\]]+/y;
const LINK = /!?\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+["'(][^\n]*?["')])?\s*\)/y;

/** The nodes of a text within a block. */
function inline(text, depth = 0) {
  const nodes = [];
  const absent = new Set(); // marks that do not occur any more: looked for once, so that all stays linear
  let plain = "";
  for (let i = 0; i < text.length;) {
    const found = depth < DEEPEST ? spanAt(text, i, depth, absent) : null;
    if (found === null) { plain += text[i]; i += 1; continue; }
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(found.node);
    i = found.end;
  }
  if (plain) nodes.push(plain);
  return nodes;
}

function spanAt(text, i, depth, absent) {
  switch (text[i]) {
    case "\n": return { node: h("br"), end: i + 1 };
    case "\\":
      if (text[i + 1] === "\n") return { node: h("br"), end: i + 2 };
      return /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "") ? { node: text[i + 1], end: i + 2 } : null;
    case "`": return codeAt(text, i, absent);
    case "!":
    case "[": return linkAt(text, i, depth);
    case "h": return addressAt(text, i);
    case "*":
    case "_":
    case "~": return pairAt(text, i, depth, absent);
    default: return null;
  }
}

function codeAt(text, i, absent) {
  const mark = /`+/y;
  mark.lastIndex = i;
  const [ticks] = mark.exec(text);
  const end = closing(text, ticks, i + ticks.length, absent);
  if (end < 0) return { node: ticks, end: i + ticks.length };
  const inner = text.slice(i + ticks.length, end).replaceAll("\n", " ");
  return { node: h("code", {}, inner.replace(/^ (.*) $/, "$1")), end: end + ticks.length };
}

function pairAt(text, i, depth, absent) {
  for (const [mark, tag] of PAIRS) {
    if (!text.startsWith(mark, i)) continue;
    const from = i + mark.length;
    const inWord = mark[0] === "_" && /\w/.test(text[i - 1] ?? "");
    if (inWord || !/\S/.test(text[from] ?? "")) continue;
    const end = closing(text, mark, from + 1, absent);
    if (end < 0 || /\s/.test(text[end - 1])) continue;
    if (mark[0] === "_" && /\w/.test(text[end + mark.length] ?? "")) continue;
    return { node: h(tag, {}, ...inline(text.slice(from, end), depth + 1)), end: end + mark.length };
  }
  return null;
}

/** Where a mark comes again, not as part of a longer one; -1: it does not. */
function closing(text, mark, from, absent) {
  if (absent.has(mark)) return -1;
  for (let at = text.indexOf(mark, from); at >= 0; at = text.indexOf(mark, at + 1)) {
    let end = at + mark.length;
    while (text[end] === mark[0]) end += 1;
    if (end - at === mark.length) return at;
    if (mark.length === 1 && mark !== "`") at = end - 1; // ** inside of *…*
    else if (mark[0] !== "`") return end - mark.length; // the end of ***
    else at = end - 1;
  }
  absent.add(mark);
  return -1;
}

/** A link, or what an image shows when it is not loaded. */
function linkAt(text, i, depth) {
  LINK.lastIndex = i;
  const match = LINK.exec(text);
  if (!match) return null;
  const inner = inline(match[1], depth + 1);
  const end = i + match[0].length;
  const target = address(match[2]);
  if (target) return { node: anchor(target, inner), end };
  return { node: h("span", {}, ...inner), end };
}

function addressAt(text, i) {
  if (/\w/.test(text[i - 1] ?? "")) return null;
  ADDRESS.lastIndex = i;
  const found = ADDRESS.exec(text)?.[0].replace(/[.,:;!?*_~)]+$/, "");
  const target = found && address(found);
  return target ? { node: anchor(target, [found]), end: i + found.length } : null;
}

function anchor(target, inner) {
  return h("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, ...inner);
}

/** An address that a link may lead to, as the browser understands it; null: another. */
function address(text) {
  try {
    const url = new URL(text);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
