// What the page knows of its server: the model's name, and whether it answers.

import * as api from "./api.js";
import { announce, byId, h, toast } from "./dom.js";

const OFTEN = 2000; // while it does not answer
const SELDOM = 15000;

/** askKey(why) as in chat.js; met(): the models are known. */
export class Watch {
  constructor(askKey, met) {
    this.askKey = askKey;
    this.met = met;
    this.models = [];
    this.there = true;
    this.look();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.look(); });
  }

  /** What the model is called: as `wanted`, if there is such a one. */
  async name(wanted) {
    if (!this.models.length) {
      const { data } = await api.json("/v1/models");
      this.models = data.map((model) => model.id);
      const choices = this.models.map((id, i) => h("option", { value: i ? id : "" }, id));
      byId("model-choice").replaceChildren(...choices);
      byId("models").hidden = choices.length < 2;
    }
    return this.called(wanted);
  }

  /** The same as far as it is known. */
  called(wanted) {
    return this.models.includes(wanted) ? wanted : this.models[0] ?? "";
  }

  /** Learn that; where it needs a key it is asked for. */
  async meet() {
    try {
      await this.name();
      this.met();
    } catch (error) {
      if (error instanceof api.Unreachable) this.lost();
      else if (error.status === 401 && await this.askKey(error.message)) await this.meet();
    }
  }

  lost() {
    this.show(false);
    this.next(OFTEN);
  }

  async look() {
    clearTimeout(this.timer);
    if (!document.hidden) {
      const there = await api.reachable();
      if (there && !this.there) {
        toast("The server answers again.");
        this.meet();
      }
      this.show(there);
    }
    this.next(this.there ? SELDOM : OFTEN);
  }

  next(time) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), time);
  }

  show(there) {
    byId("server").dataset.state = there ? "there" : "lost";
    byId("server").title = there ? "The server answers" : "The server does not answer";
    const notice = byId("notice");
    if (there !== this.there) {
      notice.hidden = there;
      notice.textContent = there ? "" : "The server does not answer. What is written here stays; it is tried again.";
      if (there) announce("The server answers again");
    }
    this.there = there;
  }
}
