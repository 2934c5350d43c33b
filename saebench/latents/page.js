"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = data.latents, at = new Map(all.map((latent, i) => [latent.n, i]));
const $ = (id) => document.getElementById(id);
const ROW = 58;
const percent = (v) => v === null ? "?" : `${(100 * v).toFixed(v === 0 || v >= 0.1 ? 0 : v < 0.01 ? 2 : 1)}%`;
const number = (v) => v === null ? "?" : Number(v.toPrecision(3)).toString();
const name = (n) => data.ends ? `${n % data.ends}${n < data.ends ? "+" : "−"}` : `${n}`;  // of a signed latent, each end
const families = all.reduce((most, l) => Math.max(most, l.g), -1) + 1;
let shown = [], current = -1, opened = -1;

// --- elements: every text goes in as textContent ---

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => element("option", text, { value })));
}

// --- which latents, in which order ---

const haystacks = all.map(() => null);
function haystack(i) {
  if (haystacks[i] === null) {
    const l = all[i];
    const texts = [...l.t, ...l.q].map(([t]) => data.texts[t]);
    haystacks[i] = [...l.k.map((k) => k[0]), l.l ? l.l[0] : "", ...texts].join("\n").toLowerCase();
  }
  return haystacks[i];
}

const orders = {
  density: ["most frequent first", (a, b) => b.f - a.f || a.n - b.n],
  rare: ["rarest first", (a, b) => a.f - b.f || a.n - b.n],
  max: ["greatest activation first", (a, b) => Math.abs(b.x) - Math.abs(a.x)],
  label: ["closest to a label first", (a, b) => (b.l ? b.l[1] - b.l[2] : -1) - (a.l ? a.l[1] - a.l[2] : -1)],
  number: ["by number", (a, b) => a.n - b.n],
};
if (all.some((l) => l.s !== null)) orders.stable = ["found by most seeds first", (a, b) => b.s - a.s || b.f - a.f];

function kinds() {
  const found = [["", "all latents"]];
  data.fired.forEach((f, i) => found.push([`fired:${i}`, `fire on: ${f.text}`]));
  if (data.against) found.push(["shared", `also in ${data.against}`], ["own", `not in ${data.against}`]);
  if (all.some((l) => l.c.length && l.c[0][1] > 0.9)) found.push(["twins", "twins (cosine above 0.9)"]);
  if (all.some((l) => l.s !== null)) found.push(["stable", "found by every other seed"], ["unstable", "found by no other seed"]);
  for (let g = 0; g < families; g++) {
    const mine = all.filter((l) => l.g === g), words = mine.slice(0, 3).map((l) => l.k[0] ? l.k[0][0] : `#${name(l.n)}`);
    found.push([`family:${g}`, `family ${g}: ${words.join(", ")} (${mine.length})`]);
  }
  for (const label of [...new Set(all.map((l) => l.l && l.l[0]).filter(Boolean))].sort()) found.push([`label:${label}`, `label ${label}`]);
  return found;
}

function keeps(kind) {
  const [word, ...rest] = kind.split(":"), value = rest.join(":");
  const same = (l) => l.a !== null && l.a[1] > data.same;
  return {
    "": () => true,
    fired: (l) => String(l.n) in data.fired[Number(value)].on,
    shared: same, own: (l) => !same(l),
    twins: (l) => l.c.length > 0 && l.c[0][1] > 0.9,
    stable: (l) => l.s === 1, unstable: (l) => l.s === 0,
    family: (l) => l.g === Number(value),
    label: (l) => l.l !== null && l.l[0] === value,
  }[word];
}

function refresh() {
  const typed = $("search").value.toLowerCase().split(/\s+/).filter(Boolean), keep = keeps($("only").value);
  shown = [];
  for (let i = 0; i < all.length; i++) {
    if (keep(all[i]) && typed.every((w) => /^#\d+$/.test(w) ? all[i].n === Number(w.slice(1)) || all[i].n === Number(w.slice(1)) + (data.ends || NaN) : haystack(i).includes(w))) shown.push(i);
  }
  const order = orders[$("sort").value][1];
  shown.sort((a, b) => order(all[a], all[b]));
  const kind = $("only").value;
  if (kind.startsWith("fired:")) {
    const on = data.fired[Number(kind.slice(6))].on;
    shown.sort((a, b) => Math.abs(on[all[b].n]) - Math.abs(on[all[a].n]));
  }
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} latents`;
  current = shown.indexOf(opened);
  $("list").scrollTop = 0;
  drawRows();
  drawMap();
}

// --- the list: only the rows that can be seen exist ---

function drawRows() {
  const list = $("list"), rows = $("rows");
  rows.style.height = `${shown.length * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  rows.replaceChildren(...Array.from({ length: Math.max(0, last - first) }, (_, i) => row(first + i)));
  if (current >= 0) list.setAttribute("aria-activedescendant", `row${current}`);
  else list.removeAttribute("aria-activedescendant");
}

function row(place) {
  const l = all[shown[place]];
  const made = element("div", undefined, {
    class: "row", role: "option", id: `row${place}`, "aria-selected": place === current, "aria-posinset": place + 1,
    "aria-setsize": shown.length, style: `top:${place * ROW}px`,
  });
  const words = l.k.map((k) => k[0]).join(", ") || (l.t.length ? data.texts[l.t[0][0]] : "no keywords");
  const parts = [`#${name(l.n)}`, `${percent(l.d)} of texts`];
  if (l.l) parts.push(`${l.l[0]} ${percent(l.l[1])}`);
  if (l.s !== null) parts.push(`seeds ${percent(l.s)}`);
  if (l.a) parts.push(l.a[1] > data.same ? `shared ${l.a[1].toFixed(2)}` : "only here");
  made.append(element("b", words), element("i", parts.join(" · ")));
  made.onclick = () => { select(place, true); };
  return made;
}

function select(place, open) {
  if (!shown.length) return;
  current = Math.min(Math.max(place, 0), shown.length - 1);
  const list = $("list"), top = current * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  opened = shown[current];
  drawRows();
  detail(all[opened]);
  drawMap();
  if (open) { document.body.classList.add("open"); }
  history.replaceState(null, "", `#${all[opened].n}`);
}

function go(n) {
  const i = at.get(n);
  if (i === undefined) return;
  if (!shown.includes(i)) { $("search").value = ""; $("only").value = ""; refresh(); }
  select(shown.indexOf(i), true);
  $("detail").scrollTop = 0;
}

// --- one latent ---

const LETTER = /[\p{L}\p{N}\p{M}]/u, SPACED = /^[\p{L}\p{N}\p{M}'’.\- ]+$/u, RUNS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;

function whole(text, from, to, word) {
  if (RUNS.test(word) || !SPACED.test(word)) return true;
  return !(from > 0 && LETTER.test(text[from - 1])) && !(to < text.length && LETTER.test(text[to]));
}

function marked(text, words) {
  const made = element("bdi"), lower = text.toLowerCase();
  if (lower.length !== text.length) { made.textContent = text; return made; }
  const places = [];
  for (const w of words) {
    for (let i = lower.indexOf(w); i >= 0; i = lower.indexOf(w, i + 1)) if (whole(lower, i, i + w.length, w)) places.push([i, i + w.length]);
  }
  places.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
  let done = 0;
  for (const [from, to] of places) {
    if (from < done) continue;
    made.append(text.slice(done, from), element("mark", text.slice(from, to)));
    done = to;
  }
  made.append(text.slice(done));
  return made;
}

function texts(title, examples, largest, words) {
  const list = element("ol", undefined, { class: "texts" });
  for (const [t, value] of examples) {
    const item = element("li"), bar = element("span", number(value));
    bar.style.setProperty("--w", `${Math.round(100 * Math.abs(value) / Math.max(Math.abs(largest), 1e-12))}%`);
    item.append(bar, marked(data.texts[t], words));
    list.append(item);
  }
  return [element("h3", title), list];
}

function links(title, pairs) {
  if (!pairs.length) return [];
  const made = element("div", undefined, { class: "links" });
  for (const [n, value] of pairs) {
    const i = at.get(n), words = i === undefined ? "" : all[i].k.slice(0, 3).map((k) => k[0]).join(", ");
    const button = element("button", `#${name(n)} ${words} (${value.toFixed(2)})`, { type: "button" });
    button.onclick = () => go(n);
    made.append(button);
  }
  return [element("h3", title), made];
}

function otherEnd(l) {
  if (!data.ends) return [];
  const n = l.n < data.ends ? l.n + data.ends : l.n - data.ends, i = at.get(n);
  if (i === undefined) return [element("p", "Its other end fires on none of these texts.")];
  const words = all[i].k.slice(0, 3).map((k) => k[0]).join(", "), links = element("div", undefined, { class: "links" });
  const button = element("button", `#${name(n)} ${words}`, { type: "button" });
  button.onclick = () => go(n);
  links.append(button);
  return [element("h3", n < data.ends ? "Its positive end" : "Its negative end"), links];
}

function detail(l) {
  const words = l.k.map((k) => k[0]).filter((w) => w.length > 1);
  const back = element("button", "‹ list", { type: "button", id: "back" });
  back.onclick = () => { document.body.classList.remove("open"); $("list").focus(); };
  const list = element("ul", undefined, { class: "words" });
  for (const [term, share, silent] of l.k) {
    list.append(element("li", term, { title: `in ${percent(share)} of what it fires on, in ${percent(silent)} of the other texts` }));
  }
  const numbers = element("dl", undefined, { class: "numbers" });
  const facts = [["fires on", `${l.f.toLocaleString("en")} texts, ${percent(l.d)}`], ["mean, greatest", `${number(l.m)}, ${number(l.x)}`]];
  if (l.l) facts.push(["label", `${l.l[0]}: ${percent(l.l[1])}, elsewhere ${percent(l.l[2])}`]);
  if (l.g >= 0) facts.push(["family", `${l.g}`]);
  if (l.s !== null) facts.push(["found by other seeds", percent(l.s)]);
  if (l.c.length && l.c[0][1] > 0.9) facts.push(["twin of", `#${name(l.c[0][0])}`]);
  if (l.a) facts.push([`nearest in ${data.against}`, `#${l.a[0]}, cosine ${l.a[1].toFixed(2)}`]);
  for (const f of data.fired) if (String(l.n) in f.on) facts.push([f.text, number(f.on[l.n])]);
  for (const [fact, value] of facts) {
    const pair = element("div");
    pair.append(element("dt", fact), element("dd", value));
    numbers.append(pair);
  }
  const tenths = l.q.length === 10 ? "One text from each tenth, the strongest first" : "One text from each that fires it";
  $("detail").replaceChildren(
    back, element("h2", `Latent ${name(l.n)}`), list, numbers, ...otherEnd(l),
    ...texts("Texts that fire it most", l.t, l.x, words), ...texts(tenths, l.q, l.x, words),
    ...links("Fires together with (correlation)", l.o), ...links("Nearest by decoder (cosine)", l.c),
  );
}

// --- the map ---

const HUES = [210, 25, 140, 320, 50, 180, 0, 260, 95, 290];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const mixed = (share) => `color-mix(in srgb, ${css("--high")} ${Math.round(100 * share)}%, ${css("--low")})`;
const logs = all.map((l) => Math.log(l.d)), lowest = logs.reduce((a, b) => Math.min(a, b), 0), highest = logs.reduce((a, b) => Math.max(a, b), -50);
const colours = {
  density: ["density", () => [["rare", mixed(0)], ["frequent", mixed(1)]],
    (l) => mixed((Math.log(l.d) - lowest) / Math.max(highest - lowest, 1e-9))],
  family: ["family", () => families > 10 ? [[`${families} families, colours repeat`, css("--quiet")]] : [],
    (l) => l.g < 0 ? css("--none") : `hsl(${HUES[l.g % 10]} 62% ${l.g % 20 < 10 ? 50 : 70}%)`],
};
if (all.some((l) => l.s !== null)) {
  colours.stability = ["stability", () => [["found by no other seed", mixed(0)], ["by every one", mixed(1)]], (l) => mixed(l.s || 0)];
}
if (data.against) {
  colours.shared = [`shared with ${data.against}`, () => [["shared", css("--accent")], ["only here", css("--none")]],
    (l) => l.a[1] > data.same ? css("--accent") : css("--none")];
}

const reach = [0, 1].map((axis) => all.reduce((most, l) => Math.max(most, Math.abs(l.p[axis])), 1e-9));
function place(l, width, height) {
  return [width / 2 + l.p[0] / reach[0] * (width / 2 - 9), height / 2 - l.p[1] / reach[1] * (height / 2 - 9)];
}

function drawMap() {
  const canvas = $("map"), width = canvas.clientWidth, height = canvas.clientHeight, scale = devicePixelRatio || 1;
  if (!width || !height) return;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const [, legend, colour] = colours[$("colour").value], visible = new Set(shown), radius = all.length > 3000 ? 1.6 : 2.6;
  const dot = (i, r) => {
    const [x, y] = place(all[i], width, height);
    pen.beginPath();
    pen.arc(x, y, r, 0, 7);
    pen.fill();
  };
  pen.globalAlpha = visible.size < all.length ? 0.12 : 0.85;
  if (visible.size < all.length) { pen.fillStyle = css("--quiet"); all.forEach((_, i) => { if (!visible.has(i)) dot(i, radius); }); }
  pen.globalAlpha = 0.9;
  for (const i of shown) { pen.fillStyle = colour(all[i]); dot(i, radius); }
  pen.globalAlpha = 1;
  if (opened >= 0) {
    const [x, y] = place(all[opened], width, height);
    pen.strokeStyle = css("--ink");
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x, y, 6, 0, 7);
    pen.stroke();
  }
  $("legend").replaceChildren(...legend().map(([text, c]) => { const s = element("span", text); s.style.setProperty("--c", c); return s; }));
}

$("map").onclick = (event) => {
  const box = $("map").getBoundingClientRect();
  let best = -1, least = 20 ** 2;
  for (const i of shown) {
    const [x, y] = place(all[i], box.width, box.height), far = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
    if (far < least) { least = far; best = i; }
  }
  if (best >= 0) select(shown.indexOf(best), true);
};

// --- keys and start ---

function step(key) {
  const page = Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
  const steps = { ArrowDown: current + 1, j: current + 1, ArrowUp: current - 1, k: current - 1, PageDown: current + page,
    PageUp: current - page, Home: 0, End: shown.length - 1 };
  return steps[key];
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select");
  if (event.key === "Escape") {
    if (document.body.classList.contains("open")) document.body.classList.remove("open");
    if (event.target === $("search")) { $("search").value = ""; refresh(); }
    $("list").focus();
  } else if (event.key === "/" && !typing) {
    event.preventDefault();
    $("search").focus();
  } else if (event.key === "Enter" && event.target === $("search")) {
    select(0, false);
    $("list").focus();
  } else if (event.key === "Enter" && event.target === $("list")) {
    select(Math.max(current, 0), true);
    $("detail").focus();
  } else if (!typing && !event.target.closest("#detail") && step(event.key) !== undefined) {
    event.preventDefault();
    select(step(event.key), false);
  }
});

let waiting = 0;
$("search").oninput = () => { clearTimeout(waiting); waiting = setTimeout(refresh, 90); };
$("list").onscroll = drawRows;
for (const id of ["sort", "only"]) $(id).onchange = refresh;
$("colour").onchange = drawMap;
addEventListener("resize", () => { drawRows(); drawMap(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
options($("sort"), Object.entries(orders).map(([key, [text]]) => [key, text]));
options($("only"), kinds());
options($("colour"), Object.entries(colours).map(([key, [text]]) => [key, text]));
$("notes").hidden = !$("notes").querySelector("li");
if (data.fired.length) $("only").value = "fired:0";
refresh();
const wanted = at.get(Number(location.hash.slice(1)));
if (all.length) select(location.hash && wanted !== undefined ? Math.max(shown.indexOf(wanted), 0) : 0, false);
else $("detail").textContent = "No latent fires on these texts.";
