// A conversation on the page: what is said, asked, stopped, edited and asked again.

import { chat, Refused, Unreachable } from "./api.js";
import { announce, h, toast } from "./dom.js";
import { MessageView } from "./message.js";
import * as store from "./store.js";

const NEAR = 48; // pixels from the end at which the thread follows what comes
const SAVE_EVERY = 1000;

/**
 * The thread of one conversation at a time; answers of others go on being written.
 *
 * model(wanted): resolves to the name of one that there is; changed(): after every change of what is listed; inspect(conversation, message);
 * askKey(why): resolves to whether there is a new key; lost(): nobody answers.
 */
export class Chat {
  constructor(thread, on) {
    this.thread = thread;
    this.on = on;
    this.runs = new Map(); // conversation id -> {conversation, message, abort}
    this.views = new Map();
    this.follows = true;
    thread.addEventListener("scroll", () => this.scrolled());
    new ResizeObserver(() => { if (this.follows) this.toEnd(); }).observe(thread);
    // A page that is left is cut off from the server: nobody's fault, and what has come is kept.
    for (const event of ["beforeunload", "pagehide"]) addEventListener(event, () => this.leave());
  }

  get running() {
    return this.runs.get(this.conversation.id);
  }

  leave() {
    for (const run of this.runs.values()) {
      store.save(run.conversation);
      run.abort.abort();
    }
  }

  /** Show a conversation, a new one if there is no such one. */
  open(id) {
    this.conversation = this.runs.get(id)?.conversation ?? (id && store.load(id)) ?? store.fresh();
    store.current.set(this.conversation.id);
    this.rebuild();
    this.on.changed();
  }

  rebuild() {
    const { messages } = this.conversation;
    this.views = new Map(messages.map((message) => [message, this.view(message)]));
    const greeting = h("div", { class: "greeting" },
      h("img", { src: "/static/icon.svg", alt: "", width: "44", height: "44" }),
      h("p", {}, "What would you like to talk about?"));
    this.thread.replaceChildren(...(messages.length ? [...this.views.values()].map((v) => v.element) : [greeting]));
    this.refresh();
    this.toEnd();
  }

  view(message) {
    return new MessageView(message, {
      again: () => this.again(),
      edit: (edited, text) => this.edit(edited, text),
      inspect: (answer) => this.on.inspect(this.conversation, answer),
    });
  }

  /** All messages as they are now. */
  refresh() {
    const { messages } = this.conversation;
    const lastAsked = messages.findLast((message) => message.role === "user");
    for (const [message, view] of this.views) {
      const last = message === messages.at(-1) || message === lastAsked;
      view.show({ last: last && !this.running, running: this.running?.message === message });
    }
  }

  send(text) {
    const { conversation } = this;
    conversation.title ||= text.replace(/\s+/g, " ").slice(0, 60);
    conversation.messages.push({ role: "user", content: text });
    this.ask();
  }

  edit(message, text) {
    const { messages } = this.conversation;
    messages.splice(messages.indexOf(message));
    this.send(text);
  }

  /** Answer the last question anew. */
  again() {
    const { messages } = this.conversation;
    messages.splice(messages.findLastIndex((message) => message.role === "user") + 1);
    this.ask();
  }

  stop() {
    this.running?.abort.abort();
  }

  forget(id) {
    this.runs.get(id)?.abort.abort();
    this.runs.delete(id);
    store.remove(id);
  }

  async ask() {
    const { conversation } = this;
    const { system, effort, model } = conversation.settings;
    const body = requestBody(conversation);
    // Until it has ended it counts as stopped: so a reload finds it.
    const message = { role: "assistant", content: "", reasoning: "", ids: [], finish: "stopped" };
    message.asked = { system, effort, model };
    conversation.messages.push(message);
    conversation.changed = Date.now();
    const run = { conversation, message, abort: new AbortController() };
    this.runs.set(conversation.id, run);
    this.keep(conversation);
    this.rebuild();
    this.on.changed();
    announce("Answering");
    try {
      await this.write(run, body);
      announce(`Answer: ${message.content.slice(0, 600)}`);
    } catch (error) {
      await this.failed(run, error);
    }
    this.ended(run);
  }

  async write({ conversation, message, abort }, body) {
    const began = performance.now();
    let first = 0;
    let saved = began;
    message.asked.model = await this.on.model(message.asked.model);
    for await (const chunk of chat({ model: message.asked.model, ...body }, abort.signal)) {
      const now = performance.now();
      message.usage = chunk.usage ?? message.usage;
      const choice = chunk.choices[0];
      if (choice === undefined) continue;
      message.ids.push(...(choice.token_ids ?? []));
      message.reasoning += choice.delta.reasoning_content ?? "";
      message.content += choice.delta.content ?? "";
      if (message.ids.length) first ||= now;
      if (message.reasoning && !message.content) message.seconds = (now - began) / 1000;
      if (now > first) message.rate = (message.ids.length - 1) / ((now - first) / 1000);
      message.finish = choice.finish_reason ?? message.finish;
      if (now - saved > SAVE_EVERY) {
        this.keep(conversation);
        saved = now;
      }
      this.paint();
    }
  }

  /** Show what has come before the next frame. */
  paint() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      const run = this.running;
      if (!run) return;
      this.views.get(run.message)?.show({ running: true });
      if (this.follows) this.toEnd();
    });
  }

  async failed(run, error) {
    const { conversation, message } = run;
    if (error.name === "AbortError") {
      announce("Stopped");
      return;
    }
    message.finish = "failed";
    if (error instanceof Refused && error.status === 401 && await this.on.askKey(error.message)) {
      run.again = this.conversation === conversation;
    } else if (error instanceof Refused && error.retryAfter) {
      message.error = `${error.message} (in ${error.retryAfter} s)`;
    } else if (error instanceof Refused || error instanceof Unreachable) {
      message.error = error.message;
    } else {
      message.error = `This page has made a mistake: ${error.message}`;
      console.error(error);
    }
    if (error instanceof Unreachable) this.on.lost();
    if (message.error) announce(message.error);
  }

  ended(run) {
    const { conversation } = run;
    const alive = this.runs.get(conversation.id) === run;
    if (alive) this.runs.delete(conversation.id);
    // One that was deleted meanwhile stays so.
    if (alive) this.keep(conversation);
    if (this.conversation === conversation) {
      this.refresh();
      if (this.follows) this.toEnd();
    }
    this.on.changed();
    if (run.again) this.again();
  }

  keep(conversation) {
    if (!store.save(conversation)) toast("The browser has no room left for conversations: delete some.");
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.thread;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.on.scrolled(this.follows);
  }

  toEnd() {
    this.thread.scrollTop = this.thread.scrollHeight;
  }
}

/** What was said before an answer, as the server reads it.  asked: the settings that count for the prompt. */
export function spoken(messages, { system }) {
  const said = messages.filter((message) => message.role === "user" || message.content);
  const first = system ? [{ role: "system", content: system }] : [];
  return [...first, ...said.map(({ role, content }) => ({ role, content }))];
}

/** Settings that were left empty are the server's to choose. */
function requestBody({ settings, messages }) {
  const { system, effort, model: _, ...sampling } = settings;
  return {
    messages: spoken(messages, { system }),
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
    ...(effort ? { reasoning_effort: effort } : {}),
    ...sampling,
  };
}
