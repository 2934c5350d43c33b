"""The page: one file, nothing from outside, and what its script does in a real browser."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import PATIENCE, browser
from sweep_data import Store, frame_of, simulate, with_state

from saebench.report import load
from saebench.report.closing import closing
from saebench.report.document import Report
from saebench.report.formats import csv
from saebench.report.glossary import TERMS, explained
from saebench.report.html import page
from saebench.report.page_tables import levels
from saebench.report.record import Record

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


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
    names = ("verdicts", "checks", "chart-pareto", "strata", "arms", "lost", "trials")
    order = [text.index(f'id="{name}"') for name in names]
    assert order == sorted(order)
    assert "batchtopk reconstructs better than topk at equal L0" in text
    assert text.count("<tr>") > 60


def test_the_page_begins_with_a_headline_and_has_five_parts(text: str) -> None:
    assert "<h1>batchtopk reconstructs best of 3 arms</h1>" in text
    assert re.findall(r'<a href="#(\w+)">', text.partition("<nav")[2].partition("</nav>")[0]) == [
        "answer", "error", "search", "latents", "data",
    ]  # fmt: skip
    assert "FVU is the fraction of variance unexplained" in text
    assert re.search(r"Made \d+ \w+ \d{4}, \d\d:\d\d by saebench ", text)


def test_the_page_has_the_spec_to_read_and_to_take(store: Store) -> None:
    file = store.runs / "demo" / "spec.yaml"
    assert not file.exists()
    file.write_text("name: demo  # <b>mine</b>\n")
    try:
        html = page(load("demo", runs_dir=store.runs))
    finally:
        file.unlink()
    assert "Spec of demo" in html
    assert "name: demo  # &lt;b&gt;mine&lt;/b&gt;" in html
    (taken,) = re.findall(r'download="demo\.yaml" href="data:text/yaml;base64,([\w+/=]*)"', html)
    assert base64.b64decode(taken).decode() == "name: demo  # <b>mine</b>\n"


def test_every_level_has_a_card_with_the_command_that_takes_its_best_sae(text: str, store: Store) -> None:
    cards = text.partition('<section id="best">')[2].partition("</section>")[0]
    taken = re.findall(r"<code>saebench export (\S+) --to batchtopk-(\d+)</code>", cards)
    report = load("demo", runs_dir=store.runs)
    best = {str(row["level"]): f"demo/{row['best_trial']}" for row in report.table("best").rows()
            if row["arm"] == "batchtopk"}  # fmt: skip
    assert {level: trial for trial, level in taken} == {f"{float(k):g}": trial for k, trial in best.items()}


def test_a_card_says_what_the_verdict_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pair that is decided, nothing; of the same pair at p = 0.06, "not decided", as in the terminal."""
    report = Report(Record(frame_of(simulate())))
    (found,) = report.comparisons
    for p, left_open in ((0.05, ""), (0.06, "(not decided)")):
        monkeypatch.setattr(report, "judged", [{"fvu": replace(found, p_pairs=p)}])
        monkeypatch.delitem(vars(report), "verdict", raising=False)
        cards = page(report).partition('<section id="best">')[2].partition("</section>")[0]
        said = f' <span class="still">{left_open}</span>' if left_open else ""
        assert cards.count(f'<p class="arm">{found.winner}{said}</p>') == cards.count('<p class="arm">') > 0
        assert all((f"{found.winner} {left_open}," in line) == bool(left_open) for line in closing(report)[2:])


def test_every_word_of_the_page_is_in_the_glossary() -> None:
    glossary = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text("utf-8")
    words = {line.split(" | ")[0].removeprefix("| ").lower() for line in glossary.splitlines()}
    assert {{"strata": "stratum", "best floor": "floor"}.get(word, word.lower()) for word in [*TERMS, "c/p/f"]} <= words


def test_strata_front_and_best_are_one_table(text: str, store: Store) -> None:
    report = load("demo", runs_dir=store.runs)
    frame = levels(report).frame
    assert frame["front"].sum() == len(report.table("pareto").frame)
    assert frame["trial"].notna().sum() == len(report.table("best").frame)
    assert len(frame) == len(report.strata.frame)
    assert 'id="pareto"' not in text


def test_every_table_has_its_values_as_a_file(text: str, store: Store) -> None:
    taken = dict(re.findall(r'download="(\w+)\.csv" href="data:text/csv;base64,([\w+/=]*)"', text))
    report = load("demo", runs_dir=store.runs)
    assert {"strata", "arms", "trials", "lost", "metrics"} <= taken.keys()
    assert base64.b64decode(taken["trials"]).decode() == csv(report.table("trials"))


def test_a_term_is_explained_once_in_every_part(text: str) -> None:
    part = text.partition('id="error"')[2].partition('id="search"')[0]
    assert part.count(">Pareto front</abbr>") == 1
    assert explained("FVU and FVU, --table l0", seen := set()) == (
        f'<abbr tabindex="0" data-tip="{TERMS["FVU"]}">FVU</abbr> and FVU, --table l0'
    )
    assert seen == {"FVU"}


def test_names_and_reasons_are_escaped() -> None:
    trials = simulate(name="<script>alert(1)</script>&")
    trials[4] = with_state(trials[4], "failed", '"><img src=x onerror=alert(1)>')
    for trial in trials:
        trial["params"]["preprocess"] = "</script>"
    html = page(Report(Record(frame_of(trials))))
    parsed(html)
    assert "<img" not in html
    assert html.count("<script>") == 1


def test_what_holds_for_a_pair_alone_is_not_marked_as_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(Record(frame_of(simulate())))
    (found,) = report.comparisons
    assert found.decided
    for p, kind, badge in ((0.05, "decided", "better"), (0.06, "open", "undecided")):
        monkeypatch.setattr(report, "judged", [{"fvu": replace(found, p_pairs=p)}])
        monkeypatch.delitem(vars(report), "verdict", raising=False)
        html = page(report)
        assert f'<div class="{kind}"><dt>FVU</dt><dd><b class="badge">{badge}</b>' in html
        assert ("decided if it were the only comparison" in html) == (p > 0.05)


def test_what_is_undecided_is_marked_so() -> None:
    html = page(Report(Record(frame_of(simulate(seeds=(0,))), notes=["half of it is missing"])))
    assert '<p class="verdict">The data do not decide between' in html
    assert '<div class="open"><dt>FVU</dt><dd><b class="badge">undecided</b>' in html
    assert "half of it is missing" in html


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_sorts_filters_tells_and_fits(text: str, tmp_path: Path, width: int) -> None:
    """On a desk and on a phone, and without a single request but the one for the page."""
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    asked: list[str] = []
    errors: list[str] = []
    with browser() as opened:
        shown = opened.new_page(viewport={"width": width, "height": 844})
        shown.set_default_timeout(PATIENCE)
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.goto(file.as_uri())

        strata = shown.locator("#strata")
        number = strata.locator("th:nth-child(5)")
        ups = sort(strata, number, 4)
        assert number.get_attribute("aria-sort") == "ascending"
        downs = sort(strata, number, 4)
        assert number.get_attribute("aria-sort") == "descending"
        assert ups == sorted(ups)
        assert downs == ups[::-1]
        assert len(set(ups)) > 2
        strata.locator("th:first-child button").click()
        assert strata.locator("tbody td").first.inner_text() == "batchtopk"

        tip = shown.locator("#tip")
        mark = shown.locator("#chart-pareto .mark:not(.faint):visible").first
        mark.scroll_into_view_if_needed()  # by itself, since a scroll hides what is shown
        shown.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        mark.hover(force=True)
        tip.wait_for(state="visible")
        assert "FVU" in tip.inner_text()
        shown.mouse.move(2, 2)
        tip.wait_for(state="hidden")

        if not shown.locator("#trials input").is_visible():
            shown.locator("#trials summary").click()
        shown.locator("#trials input").fill("jumprelu pruned")
        kept = shown.locator("#trials tbody tr:visible").all_inner_texts()
        assert kept
        assert all("jumprelu" in row and "pruned" in row for row in kept)
        wide = shown.evaluate("document.documentElement.scrollWidth - innerWidth")
        visible = shown.locator(".plot:visible")
        sizes = visible.evaluate_all(SIZES)
        clipped = visible.evaluate_all(CLIPPED)
        brushed = brush(shown)
    assert wide <= 0, "nothing sticks out of the window"
    assert len(sizes) > 5
    assert set(sizes) == {12}, "text is equally large in all figures"
    assert clipped == [], "no word of a figure is cut off"
    assert 0 < brushed[0] < brushed[1]
    assert brushed[2] == 0
    assert asked == [file.as_uri()]
    assert errors == []


SIZES = """plots => plots.flatMap(plot => {
  const scale = plot.getBoundingClientRect().width / plot.viewBox.baseVal.width;
  const size = text => Math.round(100 * scale * parseFloat(getComputedStyle(text).fontSize)) / 100;
  return [...plot.querySelectorAll("text")].map(size);
})"""
CLIPPED = """plots => plots.flatMap(plot => {
  const box = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("text")].filter(t => {
    const own = t.getBoundingClientRect();
    return own.left < box.left - 2 || own.right > box.right + 4 || own.top < box.top - 2 || own.bottom > box.bottom + 2;
  }).map(t => t.textContent);
})"""


def brush(page: Page) -> tuple[int, int, int]:
    """Drag over the upper half of the first axis; (lines left out, all lines, lines left out after a click on it)."""
    plot = page.locator("#chart-parallel .plot")
    axis = plot.locator(".brush").first
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    assert box is not None
    x, top, bottom = box["x"] + box["width"] / 2, box["y"] + 2, box["y"] + box["height"] / 2
    page.mouse.move(x, top)
    page.mouse.down()
    page.mouse.move(x, bottom, steps=3)
    page.mouse.up()
    left_out = plot.locator(".shaded.off").count()
    page.mouse.click(x, bottom - 20)
    return left_out, plot.locator(".shaded").count(), plot.locator(".shaded.off").count()


def sort(table: Locator, head: Locator, column: int) -> list[float]:
    """Click a column's head; its numbers from top to bottom."""
    head.locator("button").click()
    values: list[float] = table.locator("tbody tr").evaluate_all(
        "(rows, i) => rows.map(row => Number(row.cells[i].dataset.v))", column
    )
    return values


def test_advice_stands_on_the_page_if_there_are_levels_enough_for_it() -> None:
    two, three = (
        page(Report(Record(frame_of(simulate(levels=levels, widths=(1536,), points=1)))))
        for levels in ((8, 16), (8, 16, 32))
    )
    assert '<section id="advice">' in three
    assert "Which k: the data do not decide it." in three
    assert '<section id="chart-advice">' in three
    assert '<section id="advice">' not in two
