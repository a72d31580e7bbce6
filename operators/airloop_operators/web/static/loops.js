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

  const dress = () => {
    const chosen = outside ? (outside.documentElement.classList.contains("dark") ? "dark" : "light") : "";
    root.dataset.theme = chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    if (!outside) return;
    const theirs = getComputedStyle(outside.documentElement);
    for (const [mine, name] of Object.entries(tokens)) {
      const value = theirs.getPropertyValue(`--chakra-colors-${name}`).trim();
      if (value) root.style.setProperty(`--${mine}`, value);
    }
  };

  dress();
  if (outside) {
    new MutationObserver(dress).observe(outside.documentElement, { attributes: true, attributeFilter: ["class", "style"] });
  } else {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dress);
  }

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
