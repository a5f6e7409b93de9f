"use strict";
// The page is whole without this script: it makes tables sort, and opens what is folded where a link or a printer needs it.

const collator = new Intl.Collator(undefined, { numeric: true });

// Rows of a column, in order; those without a number stand last, whichever way the others go.
function sorted(rows, column, isNumeric, direction) {
  const key = (row) => {
    const cell = row.cells[column];
    return isNumeric ? (cell.dataset.value === undefined ? null : Number(cell.dataset.value)) : cell.textContent.trim();
  };
  const compare = (a, b) => (isNumeric ? a - b : collator.compare(a, b));
  const keyed = rows.map((row) => [key(row), row]);
  const known = keyed.filter(([value]) => value !== null).sort((a, b) => direction * compare(a[0], b[0]));
  return [...known, ...keyed.filter(([value]) => value === null)].map(([, row]) => row);
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      if (was === "descending") return body.append(...original); // the third click: as it was
      const next = was === "ascending" ? "descending" : "ascending";
      head.setAttribute("aria-sort", next);
      const isNumeric = head.dataset.numeric !== undefined;
      return body.append(...sorted(original, column, isNumeric, next === "ascending" ? 1 : -1));
    });
  });
}

function openLinked() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let each = target; each; each = each.parentElement) if (each.localName === "details") each.open = true;
  target.scrollIntoView();
}

let closed = [];
function openForPrint(isPrinting) {
  if (isPrinting) {
    closed = [...closed, ...document.querySelectorAll("details:not([open])")];
    closed.forEach((each) => { each.open = true; });
  } else {
    closed.forEach((each) => { each.open = false; });
    closed = [];
  }
}

document.querySelectorAll("table.sorts").forEach(makeSortable);
addEventListener("hashchange", openLinked);
openLinked();
addEventListener("beforeprint", () => openForPrint(true));
addEventListener("afterprint", () => openForPrint(false));
