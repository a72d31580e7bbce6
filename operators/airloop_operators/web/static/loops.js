// Inside Airflow's UI a page is a sandboxed frame of the same origin: it takes the UI's colours, and leaves through it.
"use strict";
(() => {
  let outside = null;
  try {
    if (window.parent !== window) outside = window.parent.document;
  } catch {
    outside = null; // embedded by another origin
  }
  const root = document.documentElement;
  const tokens = {
    page: "bg", card: "bg", sunken: "bg-muted", line: "border", "strong-line": "border-emphasized",
    text: "fg", muted: "fg-muted", link: "fg-info",
  };

  // A report knows light and dark by the system's setting alone; shown here it follows the page around it.
  const conditions = new WeakMap();
  const adapt = (frame) => {
    const inner = frame.contentDocument;
    if (!inner || !inner.documentElement) return;
    const dark = root.dataset.theme === "dark";
    inner.documentElement.style.colorScheme = dark ? "dark" : "light";
    for (const sheet of inner.styleSheets) {
      for (const rule of sheet.cssRules) {
        if (!(rule instanceof frame.contentWindow.CSSMediaRule)) continue;
        if (!conditions.has(rule)) conditions.set(rule, rule.media.mediaText);
        const condition = conditions.get(rule);
        const scheme = /^\(prefers-color-scheme:\s*(dark|light)\)$/.exec(condition);
        if (scheme) rule.media.mediaText = (scheme[1] === "dark") === dark ? "all" : "not all";
      }
    }
  };

  const dress = () => {
    const chosen = outside ? (outside.documentElement.classList.contains("dark") ? "dark" : "light") : "";
    root.dataset.theme = chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    const theirs = outside && getComputedStyle(outside.documentElement);
    for (const [mine, name] of outside ? Object.entries(tokens) : []) {
      const value = theirs.getPropertyValue(`--chakra-colors-${name}`).trim();
      if (value) root.style.setProperty(`--${mine}`, value);
    }
    document.querySelectorAll("iframe").forEach(adapt);
  };

  dress();
  if (outside) {
    new MutationObserver(dress).observe(outside.documentElement, { attributes: true, attributeFilter: ["class", "style"] });
  } else {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dress);
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const frame of document.querySelectorAll("iframe")) {
      frame.addEventListener("load", () => adapt(frame));
      adapt(frame);
    }
  });

  // The frame may neither open windows nor steer the UI around it; a link that belongs to the UI does.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-out]");
    if (!link || !outside || event.defaultPrevented) return;
    event.preventDefault();
    const same = new URL(link.href).origin === location.origin && link.dataset.out !== "new";
    const stand = outside.createElement("a");
    stand.href = link.href;
    stand.rel = "noopener";
    if (!same || event.ctrlKey || event.metaKey || event.shiftKey) stand.target = "_blank";
    outside.body.append(stand);
    stand.click();
    stand.remove();
  });
})();
