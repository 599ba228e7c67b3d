// What the server does right now, from its metrics.

import * as api from "./api.js";
import { h, svg } from "./dom.js";

const EVERY = 1000;
const KEPT = 60;

/** Gauges in an element, brought up to date while they are looked at. */
export class Live {
  constructor(element) {
    this.rate = new Gauge("Tokens a second", "of all answers, over the last minute");
    this.requests = new Gauge("Requests", "that are computed, and that wait");
    this.prefix = new Gauge("Prefix hits", "prompt tokens that did not have to be computed");
    this.cache = new Gauge("KV cache", "in use, kept for later, free");
    this.experts = new Gauge("Experts", "in RAM, and found there when they were needed");
    this.trouble = h("p", { class: "note", hidden: true });
    const gauges = [this.rate, this.requests, this.prefix, this.cache, this.experts];
    element.append(this.trouble, ...gauges.map((gauge) => gauge.element));
    this.samples = [];
    document.addEventListener("visibilitychange", () => this.run(this.on));
  }

  run(on) {
    this.on = on;
    clearTimeout(this.timer);
    if (on && !document.hidden) this.look();
  }

  async look() {
    try {
      const found = parse(await (await api.request("/metrics")).text());
      this.trouble.hidden = true;
      this.show(found, performance.now());
    } catch (error) {
      this.trouble.textContent = error.message;
      this.trouble.hidden = false;
      this.samples = [];
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.run(this.on), EVERY);
  }

  show(now, time) {
    const before = this.samples.at(-1);
    // A server that was started anew counts from 0.
    if (before && now.generation_tokens_total < before.now.generation_tokens_total) this.samples = [];
    this.samples = [...this.samples, { now, time }].slice(-KEPT - 1);
    const rates = this.samples.slice(1).map((sample, i) => {
      const last = this.samples[i];
      return (sample.now.generation_tokens_total - last.now.generation_tokens_total) / ((sample.time - last.time) / 1000);
    });
    this.rate.value(rates.length ? short(mean(rates.slice(-3))) : "–");
    this.rate.line(rates);
    this.rate.tell(`${count(now.generation_tokens_total)} tokens since the server began`);
    this.requests.value(count(now.num_requests_running));
    this.requests.tell(`${count(now.num_requests_waiting)} waiting`);
    this.showPrefix(now);
    this.showCache(now);
    this.showExperts(now);
  }

  showPrefix(now) {
    const asked = now.prefix_cache_queries_total;
    const share = asked ? now.prefix_cache_hits_total / asked : 0;
    this.prefix.value(percent(share));
    this.prefix.bar([share]);
    this.prefix.tell(`${count(now.prefix_cache_hits_total)} of ${count(asked)} tokens; states to begin from: ${
      count(now.prefix_snapshots)}`);
  }

  showCache(now) {
    this.cache.value(percent(now.kv_cache_usage_perc));
    this.cache.bar([now.kv_cache_usage_perc, now.kv_cache_reusable_perc]);
    // Until its first step the engine has told nothing.
    const held = now.kv_cache_bytes ? `, of ${size(now.kv_cache_bytes)}` : "";
    this.cache.tell(`${percent(now.kv_cache_reusable_perc)} kept for later${held}`);
  }

  showExperts(now) {
    if (now.experts === undefined) {
      this.experts.value("all");
      this.experts.bar([1]);
      this.experts.tell("Memory holds them all.");
      return;
    }
    const needed = now.expert_hits_total + now.expert_prefetched_total + now.expert_misses_total;
    const held = (now.expert_slots + now.experts_on_device) / now.experts;
    this.experts.value(needed ? percent(now.expert_hits_total / needed) : "–");
    this.experts.bar([held]);
    this.experts.tell(`${percent(held)} of ${count(now.experts)} in memory; ${size(now.expert_bytes_read_total)} read, ${
      now.expert_stall_seconds_total.toFixed(1)} s waited`);
  }
}

class Gauge {
  constructor(name, about) {
    this.number = h("output", {}, "–");
    this.picture = h("div", { class: "picture" });
    this.more = h("p", { class: "note" });
    this.element = h("section", { class: "gauge", title: about },
      h("h2", {}, name), this.number, this.picture, this.more);
  }

  value(text) { this.number.textContent = text; }

  tell(text) { this.more.textContent = text; }

  /** Shares of a whole, one after the other. */
  bar(shares) {
    const parts = shares.map((share) => {
      const part = h("span");
      part.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
      return part;
    });
    this.picture.replaceChildren(h("div", { class: "shares", "aria-hidden": "true" }, ...parts));
  }

  /** The last minute of a number. */
  line(values) {
    const most = Math.max(...values, 1e-9);
    const points = values.map((value, i) => `${KEPT - values.length + i},${(30 - (28 * value) / most).toFixed(2)}`);
    this.picture.replaceChildren(svg("svg", {
      class: "line", viewBox: `0 0 ${KEPT - 1} 32`, preserveAspectRatio: "none", "aria-hidden": "true",
    }, svg("polyline", { points: points.join(" ") })));
  }
}

/** Prometheus' text, as far as the page wants it: name without "fourfold:" -> sum over the labels. */
function parse(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = /^fourfold:(\w+)(?:\{[^}]*\})? (\S+)$/.exec(line);
    if (match) found[match[1]] = (found[match[1]] ?? 0) + Number(match[2]);
  }
  return found;
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function count(value) {
  return Math.round(value ?? 0).toLocaleString("en");
}

function short(value) {
  return value < 10 ? value.toFixed(1) : count(value);
}

function percent(share) {
  return share > 0 && share < 0.1 ? `${(100 * share).toFixed(1)} %` : `${Math.round(100 * share)} %`;
}

function size(bytes) {
  const unit = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), 4);
  return `${(bytes / 1024 ** unit).toFixed(unit ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}
