"use strict";

// Sort a table by a column: numbers by what they are, words in their order; what is missing comes last.
function sortBy(header) {
  const table = header.closest("table"), body = table.tBodies[0], at = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  const value = row => {
    const cell = row.cells[at];
    return cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent === "-" ? null : cell.textContent;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" && typeof b === "number" ? a - b
      : String(a).localeCompare(String(b), "en", {numeric: true});
    return down ? -order : order;
  };
  const rows = [...body.rows].map(row => [value(row), row]).sort((a, b) => compare(a[0], b[0]));
  body.append(...rows.map(pair => pair[1]));
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
}

document.querySelectorAll("th button").forEach(button => {
  button.addEventListener("click", () => sortBy(button.closest("th")));
});

document.querySelectorAll("input[type=search]").forEach(input => {
  const rows = [...input.parentNode.querySelectorAll("tbody tr")];
  const texts = rows.map(row => row.textContent.toLowerCase());
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    rows.forEach((row, i) => { row.hidden = !words.every(word => texts[i].includes(word)); });
  });
});

// What the pointer (or a finger) is on says what it is.
const tip = document.getElementById("tip");
function show(event) {
  const target = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const above = event.clientY - box.height - 12;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (above > 8 ? above : event.clientY + 16) + "px";
}
for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, show);
document.addEventListener("scroll", () => { tip.hidden = true; }, {passive: true});

// A link to a section opens it.
addEventListener("hashchange", () => {
  const details = document.querySelector(location.hash + " details");
  if (details) details.open = true;
});
