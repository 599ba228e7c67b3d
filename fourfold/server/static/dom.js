// Elements without markup: texts are only ever text.

/** An element with attributes (on… are listeners; false and null are left out) and children. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Tell those who do not see the page. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** A short note at the bottom, with something to do about it for some seconds. */
export function toast(text, action = null) {
  const place = byId("toast");
  const hide = () => { place.hidden = true; };
  const button = action && h("button", { onclick: () => { hide(); action.run(); } }, action.name);
  place.replaceChildren(text, ...(button ? [button] : []));
  place.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(hide, 6000);
}

/** A button that copies what `text` gives; none where the browser does not let pages do that. */
export function copyButton(text) {
  if (!navigator.clipboard) return null;
  const button = h("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
