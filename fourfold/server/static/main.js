// The page: its parts, and what connects them.

import { key } from "./api.js";
import { Chat } from "./chat.js";
import { byId, h, toast } from "./dom.js";
import { Inside } from "./inside.js";
import { Live } from "./live.js";
import { Panel, Settings } from "./panel.js";
import { Watch } from "./server.js";
import * as store from "./store.js";

const input = byId("input");
const live = new Live(byId("live"));
const inside = new Inside(byId("inside"));
const panel = new Panel((tab) => live.run(tab === "live"));
const watch = new Watch(askKey, showState);
const chat = new Chat(byId("thread"), {
  model: (wanted) => watch.name(wanted),
  changed: showState,
  scrolled: (follows) => { byId("latest").hidden = follows; },
  inspect: (conversation, answer) => {
    panel.open("inside");
    inside.show(conversation, answer);
  },
  lost: () => watch.lost(),
  askKey,
});
const settings = new Settings((given) => {
  chat.conversation.settings = given;
  if (chat.conversation.messages.length) store.save(chat.conversation);
  showModel();
});

/** Ask for an API key; resolves to whether there is one.  Who asks meanwhile gets the same answer. */
function askKey(why) {
  const dialog = byId("ask-key");
  askKey.pending ??= new Promise((done) => {
    byId("ask-key-why").textContent = why;
    byId("asked-key").value = "";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      askKey.pending = null;
      const given = dialog.returnValue === "use" ? byId("asked-key").value.trim() : "";
      if (given) key.set(given);
      byId("key").value = key.get();
      done(given !== "");
    }, { once: true });
  });
  return askKey.pending;
}

/** What is listed, named and enabled beside the thread. */
function showState() {
  const { conversation, running } = chat;
  byId("title").textContent = conversation.title || "New conversation";
  document.title = conversation.title ? `${conversation.title} · Fourfold` : "Fourfold";
  const send = byId("send");
  send.classList.toggle("running", Boolean(running));
  send.setAttribute("aria-label", running ? "Stop" : "Send");
  send.title = running ? "Stop (Esc)" : "Send (Enter)";
  byId("conversations").replaceChildren(...store.conversations().map(listed));
  settings.show(conversation.settings);
  showModel();
}

function showModel() {
  byId("model").textContent = watch.called(chat.conversation.settings.model);
}

function listed(conversation) {
  const open = conversation.id === chat.conversation.id;
  const title = conversation.title || "New conversation";
  return h("li", { class: open ? "open" : null },
    h("button", {
      class: "name",
      title,
      "aria-current": open ? "true" : null,
      onclick: () => { show(conversation.id); },
    }, title),
    h("button", { class: "icon", "aria-label": `Delete ${title}`, onclick: () => remove(conversation) }, "×"));
}

function show(id) {
  document.body.classList.remove("browsing");
  chat.open(id);
  input.focus();
}

function remove(conversation) {
  chat.forget(conversation.id);
  if (conversation.id === chat.conversation.id) chat.open(null);
  else showState();
  toast("Deleted.", { name: "Undo", run: () => { store.save(conversation); show(conversation.id); } });
}

function fit() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

function send() {
  const text = input.value.trim();
  if (!text || chat.running) return;
  input.value = "";
  fit();
  chat.send(text);
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.running) chat.stop();
  else send();
});
input.addEventListener("input", fit);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
  if (event.key === "ArrowUp" && !input.value && !chat.running) {
    const asked = chat.conversation.messages.findLast((message) => message.role === "user");
    if (asked) {
      event.preventDefault();
      chat.views.get(asked).edit();
    }
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("ask-key").open) return;
  if (document.body.classList.contains("browsing")) browse(false);
  else if (chat.running) chat.stop();
  else if (panel.tab) panel.close();
});

function browse(on) {
  document.body.classList.toggle("browsing", on);
  byId(on ? "new" : "open-sidebar").focus();
}
byId("open-sidebar").addEventListener("click", () => browse(true));
byId("close-sidebar").addEventListener("click", () => browse(false));
byId("new").addEventListener("click", () => show(null));
byId("latest").addEventListener("click", () => chat.toEnd());
byId("ask-key-cancel").addEventListener("click", () => byId("ask-key").close(""));
byId("key").value = key.get();
byId("save-key").addEventListener("click", () => {
  key.set(byId("key").value.trim());
  toast(key.get() ? "The key is used from now on." : "No key is sent any more.");
  watch.meet();
});
store.onChange((id) => {
  // Another tab went on with what is shown here.
  if (id === chat.conversation.id && !chat.running && store.load(id)) chat.open(id);
  else showState();
});

chat.open(store.current.get());
panel.restore();
watch.meet();
input.focus();
