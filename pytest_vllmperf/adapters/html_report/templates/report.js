"use strict";

// The results table: filters, and sorting by a click on a column's head. Without this script it is a plain table.
(function () {
  const form = document.querySelector("form.filters");
  if (!form) return;
  const body = document.querySelector("table.results tbody");
  const heads = Array.from(document.querySelectorAll("table.results thead th"));
  const verdictColumn = heads.length - 1;
  const verdicts = ["FAIL", "INVALID", "INCONCLUSIVE", "PASS"];
  const text = (row, column) => row.cells[column].textContent;
  // Reading thousands of rows takes long: not before somebody filters or sorts.
  let rows = null;
  const model = () => (rows ??= Array.from(body.rows, (row, place) => {
    const cells = Array.from(row.cells, (cell) => cell.textContent);
    const words = cells.join(" ").toLowerCase();
    return { row, place, words, engine: cells[0], workload: cells[1], verdict: cells[verdictColumn].split(" (")[0] };
  }));
  const outcome = (entry) => (verdicts.includes(entry.verdict) ? entry.verdict : "shown");

  function filter() {
    const entries = model();
    const wanted = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of entries) {
      const kept =
        wanted.every((word) => entry.words.includes(word)) &&
        (!form.elements.engine.value || form.elements.engine.value === entry.engine) &&
        (!form.elements.workload.value || form.elements.workload.value === entry.workload) &&
        (!form.elements.verdict.value || form.elements.verdict.value === outcome(entry));
      if (entry.row.hidden === kept) entry.row.hidden = !kept;
      shown += kept;
    }
    tell(shown, entries.length);
  }

  function tell(shown, all) {
    form.querySelector("output").value = shown === all ? `${shown} rows` : `${shown} of ${all} rows`;
  }

  const number = (entry, column) => {
    const value = entry.row.cells[column].dataset.v;
    return value === undefined ? null : Number(value);
  };
  const keys = {
    number,
    text: (entry, column) => text(entry.row, column) || null,
    verdict: (entry) => (outcome(entry) === "shown" ? verdicts.length : verdicts.indexOf(entry.verdict)),
  };
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;

  function sort(column, kind, direction) {
    const entries = model();
    for (const entry of entries) entry.key = keys[kind](entry, column);
    entries.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      const order = typeof a.key === "number" ? a.key - b.key : compare(a.key, b.key);
      return order * direction || a.place - b.place;
    });
    body.replaceChildren(...entries.map((entry) => entry.row));
  }

  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(column, button.dataset.sort, ascending ? 1 : -1);
    });
  });
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  for (const link of document.querySelectorAll("a[data-verdict]")) {
    link.addEventListener("click", () => {
      form.reset();
      form.elements.verdict.value = link.dataset.verdict;
      filter();
    });
  }
  form.hidden = false;
  tell(body.rows.length, body.rows.length);
})();

// Evidence of a large run is text until its card comes near the window: what nobody looks at costs nothing.
const reveal = (function () {
  const markup = "trustedTypes" in window
    ? trustedTypes.createPolicy("vllmperf", { createHTML: (text) => text })
    : { createHTML: (text) => text };
  function shown(card) {
    const held = card && card.querySelector(":scope > noscript");
    if (!held) return;
    const parsed = new DOMParser().parseFromString(markup.createHTML(held.textContent), "text/html");
    held.replaceWith(...Array.from(parsed.body.childNodes, (node) => document.importNode(node, true)));
  }
  const cards = Array.from(document.querySelectorAll("article > noscript"), (held) => held.parentElement);
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        shown(entry.target);
        near.unobserve(entry.target);
      }
    }
  }, { rootMargin: "600px" });
  for (const card of cards) near.observe(card);
  return { all: () => cards.forEach(shown), of: shown };
})();

// A link into a card shows what it points at, even where that was text until now.
(function () {
  function follow() {
    const id = decodeURIComponent(location.hash.slice(1));
    if (!/^m\d+/.test(id)) return;
    reveal.of(document.getElementById(id.split("-")[0]));
    const target = document.getElementById(id);
    if (target) target.scrollIntoView();
  }
  addEventListener("hashchange", follow);
  follow();
  // Every cell of a row leads to its evidence, not only the metric's name.
  const body = document.querySelector("table.results tbody");
  if (body) {
    body.addEventListener("click", (event) => {
      if (event.target.closest("a, button") || String(getSelection())) return;
      const link = event.target.closest("tr").querySelector("td.m a");
      if (link) link.click();
    });
  }
})();

// On paper nothing can be opened, so everything is.
addEventListener("beforeprint", () => {
  reveal.all();
  for (const closed of document.querySelectorAll("details:not([open])")) {
    closed.open = true;
    closed.dataset.closed = "";
  }
});
addEventListener("afterprint", () => {
  for (const opened of document.querySelectorAll("details[data-closed]")) {
    opened.open = false;
    delete opened.dataset.closed;
  }
});
