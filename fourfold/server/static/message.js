// One message of a conversation on the page.

import { copyButton, h } from "./dom.js";
import { Markdown } from "./markdown.js";

/**
 * A message's element, which `show` brings up to date.
 *
 * actions: {again, edit, inspect}, what its buttons do.
 */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = h("div", { class: "body" });
    this.foot = h("footer");
    const who = message.role === "user" ? "You" : "Answer";
    this.element = h("article", { class: `message ${message.role}`, "aria-label": who });
    if (message.role === "assistant") this.addThought();
    this.element.append(this.body, this.foot);
    this.text = new Markdown(this.body);
    this.show();
  }

  addThought() {
    this.thoughtTitle = h("summary");
    this.thoughtBody = h("div", { class: "body" });
    this.thought = h("details", { class: "thought" }, this.thoughtTitle, this.thoughtBody);
    this.thoughtText = new Markdown(this.thoughtBody);
    this.element.append(this.thought);
  }

  /** last: nothing follows it; running: it is being written. */
  show({ last = false, running = false } = {}) {
    const { message } = this;
    this.element.setAttribute("aria-busy", running);
    if (message.role === "user") this.body.textContent = message.content;
    else {
      this.showThought(running);
      this.text.show(message.content);
      this.element.classList.toggle("empty", running && !message.content && !message.reasoning);
    }
    this.foot.replaceChildren(...(running ? [] : this.footer(last)));
  }

  showThought(running) {
    const { reasoning = "", content, seconds } = this.message;
    this.thought.hidden = !reasoning;
    const open = running && !content;
    // It unfolds while it is all that there is, once; then it is as the reader leaves it.
    if (open !== this.wasOpen) this.thought.open = open;
    this.wasOpen = open;
    const time = seconds ? `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s` : "";
    this.thoughtTitle.textContent = open ? "Thinking…" : `Thought${time && ` for ${time}`}`;
    this.thoughtText.show(reasoning);
  }

  footer(last) {
    const { message, actions } = this;
    const parts = [];
    if (message.error) {
      parts.push(h("p", { class: "error" }, message.error));
    } else if (message.finish === "stopped") {
      parts.push(h("p", { class: "note" }, "Stopped."));
    } else if (message.finish === "length") {
      parts.push(h("p", { class: "note" }, "Cut off: it has reached the longest answer."));
    }
    const buttons = [copyButton(() => message.content)];
    const add = (name, run, title) => buttons.push(
      h("button", { type: "button", class: "quiet", onclick: run, title }, name));
    if (message.role === "user" && last) add("Edit", () => this.edit(), "Change it and ask again (↑)");
    if (message.role === "assistant" && last) {
      add(message.error ? "Try again" : "Regenerate", () => actions.again(), "Answer anew");
    }
    if (message.role === "assistant" && message.ids?.length) {
      add("Look inside", () => actions.inspect(message), "What the model chose for each token");
    }
    const row = h("div", { class: "actions" }, ...buttons);
    if (message.usage) row.append(h("span", { class: "figures" }, figures(message)));
    return [...parts, row];
  }

  /** Replaces the text with a field for another one. */
  edit() {
    const field = h("textarea", { "aria-label": "Edit the message", rows: "3" });
    field.value = this.message.content;
    const leave = () => {
      form.replaceWith(this.body);
      this.foot.hidden = false;
      this.foot.querySelector("button:last-of-type")?.focus();
    };
    const send = () => {
      const text = field.value.trim();
      if (text) this.actions.edit(this.message, text);
    };
    const form = h("form", { class: "edit", onsubmit: (event) => { event.preventDefault(); send(); } },
      field,
      h("div", { class: "row end" },
        h("button", { type: "button", onclick: leave }, "Cancel"),
        h("button", { class: "strong" }, "Send")));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); leave(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    });
    this.body.replaceWith(form);
    this.foot.hidden = true;
    field.focus();
  }
}

function figures({ usage, rate }) {
  const parts = [`${usage.completion_tokens} tokens`];
  if (rate) parts.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tok/s`);
  if (usage.prompt_cache_hit_tokens) {
    parts.push(`${usage.prompt_cache_hit_tokens} of ${usage.prompt_tokens} prompt tokens cached`);
  }
  return parts.join(" · ");
}
