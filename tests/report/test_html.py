"""The page: one file, nothing from outside, and what its script does in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sweep_data import Store, frame_of, simulate, with_state

from saebench.report import load
from saebench.report.document import Report
from saebench.report.html import page
from saebench.report.read import Record


@pytest.fixture(scope="module")
def text(store: Store) -> str:
    return page(load("demo", runs_dir=store.runs))


class Structure(HTMLParser):
    """Open tags, to see that each is closed in its turn; and every address."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src"):
                self.addresses.append(value)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(text: str) -> Structure:
    structure = Structure()
    structure.feed(text)
    assert structure.open == []
    return structure


def test_nothing_comes_from_outside(text: str) -> None:
    structure = parsed(text)
    assert all(address.startswith(("#", "data:")) for address in structure.addresses)
    assert not re.search(r"https?://|@import|url\(", text)


def test_every_link_has_its_section_and_every_id_is_one(text: str) -> None:
    structure = parsed(text)
    assert len(structure.ids) == len(set(structure.ids))
    assert {a[1:] for a in structure.addresses if a.startswith("#")} <= set(structure.ids)


def test_the_verdict_comes_first_then_charts_and_all_tables(text: str) -> None:
    order = [text.index(f'id="{name}"') for name in ("verdicts", "chart-pareto", "arms", "strata", "lost", "trials")]
    assert order == sorted(order)
    assert "batchtopk reconstructs better than topk at equal L0" in text
    assert text.count("<tr>") > 60


def test_names_and_reasons_are_escaped() -> None:
    trials = simulate(name="<script>alert(1)</script>&")
    trials[4] = with_state(trials[4], "failed", '"><img src=x onerror=alert(1)>')
    for trial in trials:
        trial["params"]["preprocess"] = "</script>"
    html = page(Report(Record(frame_of(trials))))
    parsed(html)
    assert "<img" not in html
    assert html.count("<script>") == 1


def test_what_is_undecided_is_marked_so() -> None:
    html = page(Report(Record(frame_of(simulate(seeds=(0,))), notes=["half of it is missing"])))
    assert '<li class="open"><b class="badge">not decided</b> The data do not decide' in html
    assert "half of it is missing" in html


# --- in a browser ----------------------------------------------------------------------------------------------------

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]  # fmt: skip


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    return found


def run(tmp_path: Path, html: str, script: str, *arguments: str) -> str:
    """The page after it ran, `script` appended to its own."""
    (tmp_path / "page.html").write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [browser(), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments, "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


DRIVE = """
const errors = []; addEventListener("error", e => errors.push(e.message));
const said = {};
const head = document.querySelector("#strata th:nth-child(6) button");      // L0 or FVU: numbers
const column = () => [...document.querySelectorAll("#strata tbody tr")].map(r => Number(r.cells[5].dataset.v));
head.click(); said.up = column(); head.click(); said.down = column();
said.sorted = document.querySelector("#strata th[aria-sort]").getAttribute("aria-sort");
const words = document.querySelector("#strata th:first-child button");
words.click(); said.first = document.querySelector("#strata tbody td").textContent;
const mark = document.querySelector("#chart-pareto .mark:not(.faint)");
mark.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 50, clientY: 50}));
said.tip = document.getElementById("tip").hidden ? null : document.getElementById("tip").textContent;
document.body.dispatchEvent(new PointerEvent("pointermove", {bubbles: true}));
said.gone = document.getElementById("tip").hidden;
const search = document.querySelector("#trials input");
search.value = "jumprelu pruned"; search.dispatchEvent(new Event("input"));
said.kept = [...document.querySelectorAll("#trials tbody tr")].filter(r => !r.hidden).map(r => r.textContent);
said.wide = document.documentElement.scrollWidth - innerWidth;
said.errors = errors;
document.body.dataset.said = JSON.stringify(said);
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1280,900", "500,900"])
def test_the_page_sorts_filters_tells_and_fits(text: str, tmp_path: Path, size: str) -> None:
    import json
    from html import unescape

    dom = run(tmp_path, text, DRIVE, f"--window-size={size}")
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found, dom[:500]
    said = json.loads(unescape(found.group(1)))
    assert said["errors"] == []
    assert said["up"] == sorted(said["up"])
    assert said["down"] == said["up"][::-1]
    assert len(set(said["up"])) > 2
    assert said["sorted"] == "descending"
    assert said["first"] == "batchtopk"
    assert "FVU" in said["tip"]
    assert said["gone"]
    assert said["kept"]
    assert all("jumprelu" in row and "pruned" in row for row in said["kept"])
    assert said["wide"] <= 0  # nothing sticks out of the window, also on a phone
