// The view beside the conversation: its tabs, and the settings in one of them.

import { byId } from "./dom.js";

const TABS = ["live", "inside", "settings"];
const TEXTS = ["model", "system", "effort"];
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const OPEN = "fourfold.panel";

/** shown(tab): called when another tab is looked at; null: none is. */
export class Panel {
  constructor(shown) {
    this.shown = shown;
    this.element = byId("panel");
    this.opener = null;
    for (const tab of TABS) byId(`tab-${tab}`).addEventListener("click", () => this.open(tab));
    this.element.querySelector("[role=tablist]").addEventListener("keydown", (event) => this.turn(event));
    byId("close-panel").addEventListener("click", () => this.close());
    for (const tab of ["live", "settings"]) {
      byId(`toggle-${tab}`).addEventListener("click", (event) => {
        this.opener = event.currentTarget;
        if (this.tab === tab) this.close();
        else this.open(tab);
      });
    }
  }

  /** As it was before the page was loaded, where there is room for it. */
  restore() {
    const before = localStorage.getItem(OPEN);
    if (TABS.includes(before) && before !== "inside" && matchMedia("(min-width: 70rem)").matches) this.open(before);
  }

  get tab() {
    return this.element.hidden ? null : TABS.find((tab) => !byId(tab).hidden);
  }

  open(wanted) {
    this.element.hidden = false;
    for (const tab of TABS) {
      byId(tab).hidden = tab !== wanted;
      byId(`tab-${tab}`).setAttribute("aria-selected", tab === wanted);
      byId(`tab-${tab}`).tabIndex = tab === wanted ? 0 : -1;
    }
    this.told(wanted);
  }

  close() {
    this.element.hidden = true;
    this.told(null);
    this.opener?.focus();
  }

  told(tab) {
    byId("toggle-live").setAttribute("aria-expanded", tab === "live");
    byId("toggle-settings").setAttribute("aria-expanded", tab === "settings");
    localStorage.setItem(OPEN, tab ?? "");
    this.shown(tab);
  }

  turn(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = TABS[(TABS.indexOf(this.tab) + step + TABS.length) % TABS.length];
    this.open(next);
    byId(`tab-${next}`).focus();
  }
}

/** The form of a conversation's settings.  Only what is filled in is in them. */
export class Settings {
  constructor(changed) {
    this.form = byId("settings");
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", (event) => {
      if (event.target.name) changed(this.read());
    });
  }

  show(settings) {
    for (const name of [...TEXTS, ...NUMBERS]) this.form.elements[name].value = settings[name] ?? "";
  }

  read() {
    const found = {};
    for (const name of TEXTS) {
      if (this.form.elements[name].value.trim()) found[name] = this.form.elements[name].value;
    }
    for (const name of NUMBERS) {
      const field = this.form.elements[name];
      if (field.value !== "" && field.validity.valid) found[name] = field.valueAsNumber;
    }
    return found;
  }
}
