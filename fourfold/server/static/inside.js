// Inside an answer: for one of its tokens the experts of every layer, and the context that the layers saw.

import * as api from "./api.js";
import { spoken } from "./chat.js";
import { h } from "./dom.js";
import { contextMap, contextText, expertMap, tableOf } from "./maps.js";

const BUSY = 503;
const PATIENCE = 20; // times that an inspection is asked for while another one runs

/** Shows what the server says of one token at a time; the last that was asked for. */
export class Inside {
  constructor(element) {
    this.element = element;
    this.number = 0;
    element.append(h("p", { class: "note" },
      "Choose “Look inside” under an answer: for each of its tokens you see which experts every layer chose, ",
      "and where in the context it looked."));
  }

  /** answer: one of the conversation's messages. */
  async show(conversation, answer) {
    const mine = this.begin();
    try {
      const before = conversation.messages.slice(0, conversation.messages.indexOf(answer));
      const { effort } = answer.asked;
      const prompt = await api.json("/tokenize", {
        body: { messages: spoken(before, answer.asked), ...(effort ? { reasoning_effort: effort } : {}) },
      });
      if (mine !== this.number) return;
      this.from = prompt.count;
      this.model = answer.asked.model;
      this.tokens = [...prompt.tokens, ...answer.ids];
      await this.look(this.tokens.length - 1);
    } catch (error) {
      this.fail(mine, error);
    }
  }

  /** Look at the token at `position`; `focus`: the keyboard is there. */
  async look(position, focus = false) {
    const mine = this.begin();
    try {
      const found = await this.ask(position, mine);
      if (mine === this.number) this.render(found, focus);
    } catch (error) {
      this.fail(mine, error);
    }
  }

  async ask(position, mine) {
    for (let times = 1; ; times += 1) {
      try {
        return await api.json("/fourfold/inspect", { body: { model: this.model, tokens: this.tokens, position } });
      } catch (error) {
        if (error.status !== BUSY || times === PATIENCE || mine !== this.number) throw error;
        await new Promise((done) => { setTimeout(done, 250); });
      }
    }
  }

  begin() {
    this.element.setAttribute("aria-busy", "true");
    this.number += 1;
    return this.number;
  }

  fail(mine, error) {
    if (mine !== this.number) return;
    this.element.removeAttribute("aria-busy");
    this.element.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
  }

  render(found, focus) {
    const { position, token_strs: texts } = found;
    this.element.removeAttribute("aria-busy");
    const chosen = found.layers.some((layer) => layer.spans !== null);
    const scroll = this.strip?.scrollTop ?? 0;
    this.strip = this.tokenStrip(texts, position);
    this.element.replaceChildren(
      h("h2", {}, "Tokens of the answer"),
      this.strip,
      h("p", { class: "note" }, `Token ${position - this.from + 1}, `, h("code", {}, visible(texts[position])),
        `, was decided after the ${position.toLocaleString("en")} tokens before it. ← and → go to its neighbours.`),
      h("h2", {}, "Experts"),
      expertMap(found),
      h("h2", {}, "Context"),
      contextMap(found),
      h("p", { class: "note" }, chosen
        ? "Strong: entries that an indexer chose. Faint: what a layer sees without choosing. Below, the text, the stronger the more indexers chose it."
        : "Every layer sees all that it keeps of the text: indexers begin to choose when it is longer."),
      chosen ? contextText(found) : "",
      h("details", {}, h("summary", {}, "As a table"), tableOf(found)),
    );
    this.strip.scrollTop = scroll;
    const current = this.strip.querySelector("[aria-pressed=true]");
    current.scrollIntoView({ block: "nearest" });
    if (focus) current.focus();
  }

  tokenStrip(texts, position) {
    const strip = h("div", { class: "tokens", role: "group", "aria-label": "Tokens of the answer" });
    texts.slice(this.from).forEach((text, i) => {
      const at = this.from + i;
      strip.append(h("button", {
        type: "button",
        tabindex: at === position ? "0" : "-1",
        "aria-pressed": at === position ? "true" : "false",
        onclick: () => this.look(at, true),
      }, visible(text)));
    });
    strip.addEventListener("keydown", (event) => {
      const to = position + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0);
      if (to !== position && to >= this.from && to < texts.length) {
        event.preventDefault();
        this.look(to, true);
      }
    });
    return strip;
  }
}

/** A token's text, with signs for what one does not see. */
function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "·") || "∅";
}
