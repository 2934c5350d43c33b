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
  const rows = [...input.closest("details").querySelectorAll("tbody tr")];
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

// What the keyboard is on says it, too.
document.addEventListener("focusin", event => {
  const target = event.target.closest("abbr[data-tip]");
  if (!target) return;
  const box = target.getBoundingClientRect();
  show({target, clientX: box.left, clientY: box.top});
});

// A link to a section opens it.
addEventListener("hashchange", () => {
  const details = document.querySelector(location.hash + " > details");
  if (details) details.open = true;
});

// The part that is being read is marked in the bar.
const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) {
    for (const link of links.values()) link.classList.remove("here");
    links.get(entry.target.id).classList.add("here");
  }
}, {rootMargin: "-20% 0px -75% 0px"});
document.querySelectorAll(".part").forEach(part => watcher.observe(part));

// A command is copied.
document.querySelectorAll(".copy").forEach(button => {
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code);
    }
  });
});

// Parallel coordinates: drag along an axis to keep the lines that pass there, click it to let go.
document.querySelectorAll(".panels.parallel .plot").forEach(plot => {
  const picked = new Map();
  const lines = [...plot.querySelectorAll(".hit")].map(hit => [hit, hit.previousElementSibling, hit.dataset.h.split(",").map(Number)]);
  const filter = () => {
    for (const [hit, line, heights] of lines) {
      const kept = [...picked].every(([axis, [low, high]]) => heights[axis] >= low && heights[axis] <= high);
      line.classList.toggle("off", !kept);
      hit.classList.toggle("gone", !kept);
    }
  };
  plot.querySelectorAll(".brush").forEach(brush => {
    const axis = Number(brush.dataset.axis), top = Number(brush.dataset.top), bottom = Number(brush.dataset.bottom);
    const height = event => {
      const y = (event.clientY - plot.getBoundingClientRect().top) * plot.viewBox.baseVal.height / plot.getBoundingClientRect().height;
      return Math.min(1, Math.max(0, (bottom - y) / (bottom - top)));
    };
    const band = document.createElementNS("http:" + "//www.w3.org/2000/svg", "rect");
    band.setAttribute("class", "picked");
    band.setAttribute("x", Number(brush.getAttribute("x")) + 10);
    band.setAttribute("width", 12);
    plot.append(band);
    let start = null;
    brush.addEventListener("pointerdown", event => { start = height(event); brush.setPointerCapture(event.pointerId); });
    brush.addEventListener("pointermove", event => {
      if (start === null) return;
      const now = height(event), low = Math.min(start, now), high = Math.max(start, now);
      if (high - low < 0.01) return;
      picked.set(axis, [low - 1e-6, high + 1e-6]);
      band.setAttribute("y", bottom - high * (bottom - top));
      band.setAttribute("height", (high - low) * (bottom - top));
      filter();
    });
    brush.addEventListener("pointerup", event => {
      if (start !== null && Math.abs(height(event) - start) < 0.01) {
        picked.delete(axis);
        band.setAttribute("height", 0);
        filter();
      }
      start = null;
    });
  });
});

// Paper has no folds.
addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach(d => { d.open = true; d.dataset.folded = ""; }));
addEventListener("afterprint", () => document.querySelectorAll("details[data-folded]").forEach(d => { d.open = false; delete d.dataset.folded; }));

// While the sweep runs the file is read again; what is open and where one reads stay as they are.
const seconds = Number(document.documentElement.dataset.refresh);
const folds = () => [...document.querySelectorAll("details")];
function restore() {
  const kept = JSON.parse(sessionStorage.getItem(location.pathname) || "null");
  if (!kept) return;
  sessionStorage.removeItem(location.pathname);
  folds().forEach((fold, i) => { if (kept.count === folds().length) fold.open = kept.open.includes(i); });
  scrollTo(0, kept.top);
}
try { restore(); } catch { /* no storage for files here: the browser itself keeps the place */ }
if (seconds) setInterval(() => {
  if (document.activeElement?.matches("input") || !getSelection().isCollapsed || !tip.hidden) return;
  const open = folds().flatMap((fold, i) => fold.open ? [i] : []);
  try {
    sessionStorage.setItem(location.pathname, JSON.stringify({top: scrollY, open, count: folds().length}));
  } catch { /* as above */ }
  location.reload();
}, 1000 * seconds);
