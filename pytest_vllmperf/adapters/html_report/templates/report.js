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
  const rows = Array.from(body.rows, (row, place) => ({
    row,
    place,
    words: row.textContent === "" ? "" : Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase(),
    engine: text(row, 0),
    workload: text(row, 1),
    verdict: text(row, verdictColumn),
  }));
  const outcome = (entry) => (verdicts.includes(entry.verdict) ? entry.verdict : "shown");

  function filter() {
    const wanted = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of rows) {
      const kept =
        wanted.every((word) => entry.words.includes(word)) &&
        (!form.elements.engine.value || form.elements.engine.value === entry.engine) &&
        (!form.elements.workload.value || form.elements.workload.value === entry.workload) &&
        (!form.elements.verdict.value || form.elements.verdict.value === outcome(entry));
      entry.row.hidden = !kept;
      shown += kept;
    }
    form.querySelector("output").value = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
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
    for (const entry of rows) entry.key = keys[kind](entry, column);
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      const order = typeof a.key === "number" ? a.key - b.key : compare(a.key, b.key);
      return order * direction || a.place - b.place;
    });
    body.replaceChildren(...rows.map((entry) => entry.row));
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
  filter();
})();

// On paper nothing can be opened, so everything is.
addEventListener("beforeprint", () => {
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
