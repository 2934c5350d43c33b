"""report --watch: a page that is written again while the sweep runs."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browsing import browser
from report.sweep_data import Store, make_store

from saebench.cli import watch
from saebench.cli.report import inches
from saebench.cli.watch import watch_page
from saebench.errors import UserError
from saebench.report import load


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


def watched(store: Store, monkeypatch: pytest.MonkeyPatch, out: Path, runs: int, stop: bool = False) -> list[str]:
    """What stands in the file after each look at a sweep that runs for `runs` of them."""
    seen: list[str] = []
    held = iter([{"pid": 1}] * runs + [None])
    monkeypatch.setattr(watch, "holder", lambda _: next(held))

    def sleep(seconds: float) -> None:
        assert seconds >= watch.REFRESH
        seen.append(out.read_text())
        if stop:
            raise KeyboardInterrupt

    def again(*sweeps: str) -> Any:
        return load(*sweeps, runs_dir=store.runs)

    watch_page(("demo",), out, False, again, sleep)
    return [*seen, out.read_text()]


def test_the_page_is_live_while_the_sweep_runs_and_final_after(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, last = watched(store, monkeypatch, tmp_path / "page.html", 2)
    assert re.search(r'<html lang="en" data-refresh="\d+', first)
    assert "data-refresh=" in second
    assert "data-refresh=" not in last.partition("<head>")[0]
    assert "is final" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_ctrl_c_leaves_a_page_that_no_longer_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    *_, last = watched(store, monkeypatch, tmp_path / "page.html", 5, stop=True)
    assert "data-refresh=" not in last.partition("<head>")[0]


@pytest.mark.slow
def test_an_open_page_reads_its_file_again_and_stays_where_it_was_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    monkeypatch.setattr(watch, "REFRESH", 0.5)
    live, _ = watched(store, monkeypatch, file, 1)
    live = re.sub(r'data-refresh="\d+(\.\d+)?"', 'data-refresh="0.5"', live)
    file.write_text(live.replace("<h1>", "<h1>before: "))
    with browser() as opened:
        page = opened.new_page(viewport={"width": 1000, "height": 700})
        page.goto(file.as_uri())
        page.locator("#trials details").evaluate("fold => { fold.open = true; }")
        page.evaluate("scrollTo(0, 900)")
        file.write_text(live.replace("<h1>", "<h1>after: "))
        page.wait_for_function("document.querySelector('h1').textContent.startsWith('after')", timeout=20_000)
        page.wait_for_function("scrollY > 800", timeout=20_000)
        assert page.locator("#trials details").evaluate("fold => fold.open")


def test_a_width_is_a_length() -> None:
    assert inches("3.3in") == pytest.approx(3.3)
    assert inches("84mm") == pytest.approx(84 / 25.4)
    assert inches("240pt") == pytest.approx(3.321, abs=1e-3)
    assert inches("5") == 5
    for text in ("wide", "0in", "3.3em", "-2in", "100in"):
        with pytest.raises(UserError, match="--width"):
            inches(text)


def test_watch_needs_a_place_for_the_page() -> None:
    report = SimpleNamespace(record=SimpleNamespace(sources=[SimpleNamespace(paths=None)]))
    with pytest.raises(UserError, match="--watch needs --out FILE"):
        watch_page((), None, False, lambda *_: report)  # type: ignore[arg-type, return-value]
