"""MLflow's own pages on a sweep: a real server, the tool's own tracker, a real browser. What a user comes for is there:
names, values and parameters in the table, strata as groups, curves, the front and parallel coordinates as charts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import pytest
from browsing import PATIENCE, browser
from mlflow_server import Server

from saebench.config import BatchTopKConfig, DataConfig, DatasetConfig, TopKConfig, TrainConfig, TrialConfig
from saebench.runs.durable import write_json
from saebench.runs.events import Event, EventLog
from saebench.runs.paths import SweepPaths
from saebench.runs.state import TrialState
from saebench.sweep_config import TrackingConfig
from saebench.tracking import Tracker
from saebench.tracking.views import page

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.slow

SAMPLES, MARKS, LR = 4000, (1000, 2000, 3000, 4000), (0.001, 0.003)
DATA = DataConfig(
    model="toy/encoder", dataset=DatasetConfig(path="parquet", data_files="glosses.parquet"), num_examples=6000
)
SPEC = {
    "data": DATA.model_dump(mode="json"),
    "sae": [{"type": kind, "k": [16, 32], "dict_size": 256} for kind in ("topk", "batchtopk")],
    "train": {"samples": SAMPLES, "lr": list(LR)},
    "seeds": [0, 1],
    "search": {"objective": "eval/fvu", "direction": "minimize"},
}
STRATA = [(kind, k) for kind in ("topk", "batchtopk") for k in (16, 32)]


class Trial(NamedTuple):
    config: TrialConfig
    state: str

    @property
    def name(self) -> str:
        return f"{self.config.number:04d} {self.config.stratum}"

    @property
    def marks(self) -> tuple[int, ...]:
        return MARKS[:2] if self.state == "pruned" else MARKS

    def fvu(self, samples: int) -> float:
        """Every trial has its own; larger k and more samples make it smaller."""
        return round(0.9 - samples / 20_000 - self.config.sae.k / 200 + self.config.number / 1000, 6)


def trials() -> list[Trial]:
    """Each stratum at two learning rates with seed 0, the second pruned; the first again with seed 1."""
    made = []
    for lr, seed, state in ((LR[0], 0, "complete"), (LR[1], 0, "pruned"), (LR[0], 1, "complete")):
        for kind, k in STRATA:
            sae = TopKConfig(k=k, dict_size=256) if kind == "topk" else BatchTopKConfig(k=k, dict_size=256)
            config = TrialConfig(
                sweep="glosses", number=len(made), stratum=f"{kind}-k{k}-n256", point=f"p{lr}", seed=seed, data=DATA,
                sae=sae, train=TrainConfig(samples=SAMPLES, batch_size=100, eval_every=1000, lr=lr),
            )  # fmt: skip
            made.append(Trial(config, state))
    return made


TRIALS = trials()
COMPLETE = [trial for trial in TRIALS if trial.state == "complete"]


def log_sweep(root: Path, uri: str) -> Tracker:
    """As the scheduler does it: a trial's files, and the tracker that follows them."""
    paths = SweepPaths(root)
    root.mkdir(parents=True)
    paths.spec.write_text("name: glosses\n")
    write_json(paths.lock, {"name": "glosses"})
    tracker = Tracker(paths, TrackingConfig(uri=uri), "glosses", interval=0.02, share=1.0)
    tracker.start(
        {
            "spec": SPEC,
            "d_in": 384,
            "num_train": 5400,
            "num_validation": 200,
            "num_test": 400,
            "cache_key": "0123456789abcdef",
        }
    )
    for config, state in TRIALS:
        trial, of = paths.trial(config.number), Trial(config, state)
        write_json(trial.config, config.model_dump(mode="json"))
        tracker.open(config)
        log = EventLog(trial.events)
        log.append(Event("start", 0, info={"device": "cpu"}))
        for samples in of.marks:
            values = {"eval/fvu": of.fvu(samples), "eval/l0": float(config.sae.k), "eval/dead_fraction": 0.25}
            log.append(Event("step", samples, {"train/loss": 2 * of.fvu(samples)}))
            log.append(Event("eval", samples, values))
        log.close()
        reason = "weak at 2,000 samples" if state == "pruned" else ""
        TrialState(config.number, config.stratum, config.point, config.seed, SAMPLES, state=state).write(trial)  # type: ignore[arg-type]
        tracker.close_trial(config.number, state, reason)
    assert tracker.close(patience=60).unsent == 0
    return tracker


class Site(NamedTuple):
    page: Page
    uri: str
    experiment: str
    runs: dict[str, str]
    """Trial's name -> id of its run."""

    def open(self, address: str) -> Page:
        self.page.goto("about:blank")  # else only the fragment would change, and the page's state stay
        self.page.goto(self.uri + address)
        return self.page

    def view(self, name: str, more: str = "") -> Page:
        return self.open(page(self.experiment, "glosses", name) + more)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("ui")
    with browser() as opened:
        server = Server(folder, f"sqlite:///{folder / 'mlflow.db'}")
        server.start()
        try:
            tracker = log_sweep(folder / "runs" / "glosses", server.uri)
            sent = json.loads(SweepPaths(folder / "runs" / "glosses").tracking.read_text())["trials"]
            names = {trial.config.number: trial.name for trial in TRIALS}
            context = opened.new_context(viewport={"width": 1700, "height": 1100})
            context.set_default_timeout(PATIENCE)
            context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
            runs = {names[int(number)]: trial["run_id"] for number, trial in sent.items()}
            yield Site(context.new_page(), server.uri, tracker.experiment_id, runs)
        finally:
            server.kill()


def cells(shown: Page, column: str) -> list[str]:
    """Texts of a column of the table from top to bottom, without its head."""
    found = shown.locator(f'[role="gridcell"][col-id="{column}"]')
    found.first.wait_for()
    texts: list[tuple[int, str]] = found.evaluate_all(
        "cells => cells.map(c => [Number(c.closest('[row-index]').getAttribute('row-index')), c.innerText.trim()])"
    )
    return [text for _, text in sorted(texts)]


def names(shown: Page) -> list[str]:
    """Of trials ("0001 topk-k32-n256") and groups ("Group: topk-k32-n256"), without their colours and counts."""
    found = [re.search(r"(Group:|\d{4}) \S+", text) for text in cells(shown, "attributes.`Run Name`")]
    return [match[0] for match in found if match]


def charts(shown: Page) -> Locator:
    return shown.get_by_test_id("experiment-view-compare-runs-card")


def test_the_table_has_every_trial_with_its_values_the_best_first(site: Site) -> None:
    shown = site.view("trials")
    shown.get_by_text(TRIALS[-1].name).wait_for()
    order = sorted(TRIALS, key=lambda trial: trial.fvu(trial.marks[-1]))
    assert names(shown) == [trial.name for trial in order]
    assert [float(text) for text in cells(shown, "metrics.`eval/fvu`")] == [t.fvu(t.marks[-1]) for t in order]
    assert cells(shown, "params.`type`") == [trial.config.sae.type for trial in order]
    assert cells(shown, "params.`k`") == [f"{trial.config.sae.k:g}" for trial in order]
    assert cells(shown, "params.`lr`") == [str(trial.config.train.lr) for trial in order]
    assert cells(shown, "params.`seed`") == [str(trial.config.seed) for trial in order]
    assert cells(shown, "tags.`saebench.state`") == [trial.state for trial in order]
    assert all("glosses.parquet" in text for text in cells(shown, "attributes.`Dataset`"))


def test_both_views_are_listed(site: Site) -> None:
    shown = site.view("trials")
    shown.get_by_test_id("saved-views-trigger").click()
    for name in ("glosses: trials", "glosses: strata"):
        shown.get_by_role("menu").get_by_text(name).wait_for()


def test_strata_are_groups_with_the_mean_of_their_complete_trials(site: Site) -> None:
    shown = site.view("strata")
    shown.get_by_text("Group: topk-k16-n256").wait_for()
    rows, found = names(shown), {}
    for name, value in zip(rows, cells(shown, "metrics.`eval/fvu`"), strict=True):
        if name.startswith("Group: "):
            found[name.split()[1]] = float(value.split()[0])
    means = {}
    for kind, k in STRATA:
        stratum = f"{kind}-k{k}-n256"
        values = [trial.fvu(SAMPLES) for trial in COMPLETE if trial.config.stratum == stratum]
        means[stratum] = pytest.approx(sum(values) / len(values), abs=1e-6)
    assert found == means
    assert {name for name in rows if not name.startswith("Group")} == {trial.name for trial in COMPLETE}


def test_charts_are_the_curves_the_front_and_parallel_coordinates(site: Site) -> None:
    shown = site.view("trials", "&compareRunsMode=CHART")
    curves = charts(shown).filter(has_text="eval/fvu").first.locator(".scatterlayer .trace")
    curves.nth(len(TRIALS) - 1).wait_for(state="attached")
    front = charts(shown).filter(has_text="eval/l0 vs. eval/fvu")
    front.locator(".scatterlayer .point").nth(len(TRIALS) - 1).wait_for(state="attached")
    front.hover()
    shown.mouse.wheel(0, 900)  # a chart below the window is not drawn yet
    parallel = charts(shown).filter(has_text="Parallel Coordinates").locator(".parcoords")
    parallel.locator("svg .dimension").nth(4).wait_for(state="attached")
    words = parallel.inner_text().split()
    assert {"type", "k", "lr", "seed", "eval/fvu", "topk", "batchtopk"} <= set(words)


def test_curves_of_strata(site: Site) -> None:
    shown = site.view("strata", "&compareRunsMode=CHART")
    legend = charts(shown).filter(has_text="eval/fvu").first
    for kind, k in STRATA[:2]:  # a legend shows as many as fit
        legend.get_by_text(f"{kind}-k{k}-n256").first.wait_for()


def test_the_compare_page_has_parallel_coordinates_of_what_differs(site: Site) -> None:
    chosen = [trial for trial in COMPLETE if trial.config.seed == 0]
    runs = quote(json.dumps([site.runs[trial.name] for trial in chosen]))
    shown = site.open(f"/#/compare-runs?runs={runs}&experiments={quote(json.dumps([site.experiment]))}")
    shown.get_by_text("Comparing 4 Runs").wait_for()
    for trial in chosen:
        shown.get_by_text(trial.name, exact=True).first.wait_for()
        shown.get_by_text(str(trial.fvu(SAMPLES)), exact=False).first.wait_for()
    axes = shown.locator(".parcoords .axis-title, .js-plotly-plot .axis-title")
    axes.first.wait_for()
    assert {"k", "type"} <= set(axes.all_text_contents())
    shown.get_by_role("tab", name="Scatter Plot").click()
    shown.get_by_role("tabpanel").locator(".js-plotly-plot").wait_for()  # drawn on a canvas
    shown.get_by_role("tab", name="Box Plot").click()
    for axis, choice in enumerate(("type", "eval/fvu")):
        shown.get_by_role("tabpanel").get_by_role("combobox").nth(axis).click()
        shown.get_by_role("option", name=choice, exact=True).click()
    shown.locator(".js-plotly-plot .boxlayer .trace").nth(1).wait_for(state="attached")
