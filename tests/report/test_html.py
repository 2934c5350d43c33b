"""The page: one file, nothing from outside, and what its script does in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import PATIENCE, browser
from sweep_data import Store, frame_of, simulate, with_state

from saebench.report import load
from saebench.report.document import Report
from saebench.report.html import page
from saebench.report.record import Record

if TYPE_CHECKING:
    from playwright.sync_api import Locator


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
        number = strata.locator("th:nth-child(6)")
        ups = sort(strata, number, 5)
        assert number.get_attribute("aria-sort") == "ascending"
        downs = sort(strata, number, 5)
        assert number.get_attribute("aria-sort") == "descending"
        assert ups == sorted(ups)
        assert downs == ups[::-1]
        assert len(set(ups)) > 2
        strata.locator("th:first-child button").click()
        assert strata.locator("tbody td").first.inner_text() == "batchtopk"

        tip = shown.locator("#tip")
        mark = shown.locator("#chart-pareto .mark:not(.faint)").first
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
    assert wide <= 0, "nothing sticks out of the window"
    assert asked == [file.as_uri()]
    assert errors == []


def sort(table: Locator, head: Locator, column: int) -> list[float]:
    """Click a column's head; its numbers from top to bottom."""
    head.locator("button").click()
    values: list[float] = table.locator("tbody tr").evaluate_all(
        "(rows, i) => rows.map(row => Number(row.cells[i].dataset.v))", column
    )
    return values
