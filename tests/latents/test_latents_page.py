"""The page in a real browser: what it shows, what keys do, and that no text is ever markup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browsing import browser
from latents.planted import NAMES, TOPICS, data_config, planted_sae, texts, trial_config, write_trial

from saebench.latents import analyse
from saebench.latents import page as page_module
from saebench.latents.page import page
from saebench.latents.visible import visible
from saebench.runs.paths import cache_dir
from saebench.stores import cache

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ATTACK = '<script>document.title="owned"</script><img src=x onerror="document.title=1">'
LOCAL = ("file:", "data:")
CONTROLS = "bell \x07 escape \x1b[31m red \u202e turned"


@pytest.fixture
def file(models: None, tmp_path: Path) -> Path:  # noqa: ARG001 - the corpus is built with them
    rows = texts(900)
    for i, row in enumerate(rows):
        if row["label"] == "water":
            row["text"] = f"river river river {ATTACK} {CONTROLS} {i}" if i % 2 else row["text"]
    rows[3]["text"] = "planet " * 150_000  # a megabyte
    data = data_config(tmp_path, rows)
    cache.build(data, cache_dir())
    config = trial_config(data)
    other = write_trial(tmp_path / "runs", config.model_copy(update={"number": 1, "point": "q"}), planted_sae(1))
    found = analyse(write_trial(tmp_path / "runs", config, planted_sae()).root, against=other.root)
    out = tmp_path / "page.html"
    out.write_text(page(found, [("two rivers <b>", {0: 0.5, 3: 0.2})]), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def opened(chromium: Browser, file: Path, errors: list[str], **options: Any) -> Page:
    context = chromium.new_context(**{"viewport": {"width": 1400, "height": 900}, "offline": True, **options})
    shown = context.new_page()
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    shown.on(
        "request",
        lambda request: errors.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    shown.goto(file.as_uri())
    shown.wait_for_selector(".row")
    return shown


def test_texts_are_shown_as_texts_and_nothing_is_asked_of_the_network(chromium: Browser, file: Path) -> None:
    errors: list[str] = []
    shown = opened(chromium, file, errors)
    shown.select_option("#only", "")
    shown.fill("#search", "river")
    shown.locator(".row", has=shown.locator("b", has_text="river")).first.click()  # other rows have it in their texts
    detail = shown.inner_text("#detail")
    assert "<script>document.title=" in detail
    assert "\\x1b[31m" in detail
    assert not set("\x07\x1b\u202e") & set(shown.content())
    assert shown.title() == "demo/0: latents"
    assert shown.locator("#detail script, #detail img").count() == 0
    assert len(file.read_text("utf-8")) < 2_000_000, "a text of a megabyte is cut"
    assert errors == []
    raw = file.read_text("utf-8")
    assert ATTACK not in raw
    assert "\\u003cscript>document" in raw


def test_search_filters_order_and_keys(chromium: Browser, file: Path) -> None:
    errors: list[str] = []
    shown = opened(chromium, file, errors)
    assert shown.input_value("#only") == "fired:0", "the sentence that was asked about comes first"
    assert [shown.locator(".row i").nth(i).inner_text().split(" ")[0] for i in range(2)] == ["#0", "#3"]
    shown.select_option("#only", "label:music")
    assert "1 of" in shown.inner_text("#count")
    assert any(word in shown.inner_text(".row b") for word in TOPICS["music"])
    shown.select_option("#only", "own")
    assert all("only here" in text for text in shown.locator(".row i").all_inner_texts())
    shown.select_option("#only", "")
    shown.locator("#list").focus()
    shown.keyboard.press("Home")
    first = shown.inner_text("#detail h2")
    shown.keyboard.press("j")
    second = shown.inner_text("#detail h2")
    shown.keyboard.press("ArrowUp")
    assert shown.inner_text("#detail h2") == first != second
    shown.keyboard.press("/")
    assert shown.evaluate("document.activeElement.id") == "search"
    shown.keyboard.type(f"#{NAMES.index('law')} ")
    shown.locator("#count", has_text="1 of").wait_for()
    shown.keyboard.press("Enter")
    assert shown.inner_text("#detail h2") == f"Latent {NAMES.index('law')}"
    assert any(word in shown.inner_text("#detail mark") for word in TOPICS["law"])
    shown.locator("#detail .links button").first.click()
    assert shown.inner_text("#detail h2") != f"Latent {NAMES.index('law')}"
    shown.keyboard.press("/")
    shown.keyboard.press("Escape")
    assert shown.input_value("#search") == ""
    assert errors == []


def test_on_a_phone_the_list_comes_first_and_details_go_over_it(chromium: Browser, file: Path) -> None:
    errors: list[str] = []
    shown = opened(chromium, file, errors, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    assert not shown.is_visible("#detail")
    shown.locator(".row").first.tap()
    assert shown.is_visible("#detail")
    assert shown.evaluate("document.querySelector('#detail').scrollWidth") <= 390
    shown.locator("#back").tap()
    assert not shown.is_visible("#detail")
    assert errors == []


def test_dark_mode_has_its_own_colours(chromium: Browser, file: Path) -> None:
    errors: list[str] = []
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened(chromium, file, errors).evaluate(ground)
    dark = opened(chromium, file, errors, color_scheme="dark").evaluate(ground)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 23, 28)")


def test_six_thousand_latents_are_a_list_of_a_few_rows(chromium: Browser, file: Path, tmp_path: Path) -> None:
    """The data of the page many times over: the browser draws the rows that can be seen, and searches all."""
    html = file.read_text("utf-8")
    begin = html.index('id="data">') + len('id="data">')
    end = html.index("</script>", begin)
    data = json.loads(html[begin:end])
    some = data["latents"]
    draw = np.random.default_rng(0)
    data["latents"] = [
        {**some[i % len(some)], "n": i, "p": draw.uniform(-1, 1, 2).round(3).tolist()} for i in range(6144)
    ]
    data["fired"] = []
    many = tmp_path / "many.html"
    many.write_text(html[:begin] + json.dumps(data).replace("<", "\\u003c") + html[end:], encoding="utf-8")
    errors: list[str] = []
    shown = opened(chromium, many, errors)
    assert "6,144 of 6,144" in shown.inner_text("#count")
    assert shown.locator(".row").count() < 40
    spent = shown.evaluate(
        """() => { const begin = performance.now();
        document.querySelector('#list').scrollTop = 58 * 3000; document.querySelector('#list').onscroll();
        document.querySelector('#search').value = 'river'; refresh();
        return performance.now() - begin; }"""
    )
    assert spent < 3000, f"{spent} ms to scroll, search all and draw the map, on a busy machine"
    assert shown.locator(".row").count() < 40
    assert errors == []


def test_a_page_of_too_many_latents_says_what_it_leaves_out(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MOST", 5)
    assert file.is_file()
    html = page(analyse(tmp_path / "runs" / "demo" / "trials" / "0000"))
    assert "the 5 most frequent latents are shown" in html
    data = json.loads(html[html.index('id="data">') + 10 :].partition("</script>")[0])
    assert len(data["latents"]) == 5


def test_what_may_be_shown() -> None:
    assert visible("a\x1b[2Jb\nc\td") == "a\\x1b[2Jb c d"
    assert visible("\ud800x") == "?x"
    assert visible("abcdef", 4) == "abc…"
