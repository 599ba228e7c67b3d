// Conversations, in this browser only: one entry each, so that two tabs do not overwrite each other's.

const PREFIX = "fourfold.conversation.";
const LAST = "fourfold.settings";
const CURRENT = "fourfold.current";

/** All of them, the one that changed last first. */
export function conversations() {
  const found = [];
  for (let i = 0; i < localStorage.length; i += 1) {
    const name = localStorage.key(i);
    if (name.startsWith(PREFIX)) found.push(load(name.slice(PREFIX.length)));
  }
  return found.filter((one) => one !== null).sort((a, b) => b.changed - a.changed);
}

/** One that nothing was said in: it is kept when something is. */
export function fresh() {
  return { id: newId(), title: "", changed: Date.now(), settings: read(LAST) ?? {}, messages: [] };
}

export function load(id) {
  const found = read(PREFIX + id);
  return Array.isArray(found?.messages) && found.id === id ? found : null;
}

/** False: the browser has no room for it. */
export function save(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    localStorage.setItem(LAST, JSON.stringify(conversation.settings));
    return true;
  } catch {
    return false;
  }
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

export const current = {
  get: () => localStorage.getItem(CURRENT),
  set: (id) => localStorage.setItem(CURRENT, id),
};

/** Called when another tab has changed one. */
export function onChange(told) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) told(event.key?.slice(PREFIX.length));
  });
}

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
