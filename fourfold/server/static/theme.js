// Light, dark, or as the system has it: before anything is painted, so that nothing flashes.
"use strict";
(() => {
  const KEY = "fourfold.theme";
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");

  apply(localStorage.getItem(KEY));
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const told = () => {
      const theme = document.documentElement.dataset.theme;
      button.title = `Colours: ${theme ?? "as the system"}`;
      button.setAttribute("aria-label", button.title);
    };
    button.addEventListener("click", () => {
      const system = dark.matches ? "dark" : "light";
      const other = system === "dark" ? "light" : "dark";
      const theme = document.documentElement.dataset.theme === undefined ? other : "";
      if (theme) localStorage.setItem(KEY, theme);
      else localStorage.removeItem(KEY);
      apply(theme);
      told();
    });
    told();
  });
})();
