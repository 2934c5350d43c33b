"""docs/architecture.md, "A new architecture": a config class and an SAE class are all that a type needs. This one
exists in this test alone, and goes from its spec to its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from rows import open_rows
from torch import Tensor

from saebench import stores
from saebench.compat.plain import LayoutError
from saebench.compat.saelens import export_saelens
from saebench.config import SAE_CONFIGS, PositiveFloat, SAEConfig, TrialConfig
from saebench.errors import SpecError
from saebench.forecast import work
from saebench.plan import make_plan
from saebench.report.points import annotate
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths
from saebench.saes import SAE, SAE_TYPES, load_sae
from saebench.saes.loss import Loss, Moment
from saebench.saes.sparse import DenseCodes
from saebench.spec import SweepSpec, parse_spec
from saebench.spec.reference import reference
from saebench.trial.run import run_trial


@pytest.fixture(autouse=True)
def _only_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tables forget the type when the test ends."""
    before = dict(SAE_CONFIGS), dict(SAE_TYPES)
    monkeypatch.setattr(stores, "open_store", open_rows)
    _declare()
    yield
    for table, rows in zip((SAE_CONFIGS, SAE_TYPES), before, strict=True):
        table.clear()
        table.update(rows)  # type: ignore[call-overload]


def _declare() -> None:
    """What config/architectures.py and saes/soft.py would hold."""

    class SoftConfig(SAEConfig):
        """A softly thresholded code."""

        sparsity: ClassVar[tuple[str, ...]] = ("shrink",)

        type: Literal["soft"] = "soft"
        shrink: PositiveFloat
        """What is taken off every pre-activation."""

    globals()["SoftConfig"] = SoftConfig  # where the annotation below is looked up

    class SoftSAE(SAE):
        config: SoftConfig

        def activate(self, pre: Tensor) -> Tensor:
            return torch.relu(pre - self.config.shrink)

        def loss(self, x: Tensor, moment: Moment) -> Loss:
            z = self.training_input(x)
            codes = DenseCodes(self.activate(self.pre_activations(z, moment.precision)))
            fvu = self.fvu(z, self.rebuilt(codes))
            return Loss.of(fvu, fvu, codes, {})


SPEC = {
    "name": "s",
    "data": {"model": "m", "dataset": {"path": "fancyzhx/ag_news"}, "num_examples": 800},
    "sae": [{"type": "soft", "shrink": [0.05, 0.1], "dict_size": 48}],
    "train": {"samples": 2000, "batch_size": 64, "lr": [1e-3, 3e-3], "eval_every": 500, "dead_after": 640},
    "search": {"sampler": "grid"},
}


def spec(**changes: object) -> SweepSpec:
    return parse_spec({**SPEC, **changes})


def trial() -> TrialConfig:
    plan = make_plan(spec(), 16)
    return plan.trial(plan.strata[0], {"lr": 3e-3}, seed=5, number=0)


def run(folder: Path, stop_at: int | None = None, verdict: Verdict = Verdict.LEAVE) -> list[Event]:
    reported: list[Event] = []

    def report(event: Event) -> Verdict:
        reported.append(event)
        (folder / "events.jsonl").parent.mkdir(parents=True, exist_ok=True)
        with (folder / "events.jsonl").open("a") as file:
            file.write(event.to_line() + "\n")
        return verdict if event.type == "eval" and event.samples == stop_at else Verdict.GO

    run_trial(trial(), TrialPaths(folder), "cpu", report, cache_dir=folder)
    return reported


def test_it_validates_and_plans() -> None:
    plan = make_plan(spec(), 16)
    assert [stratum.id for stratum in plan.strata] == ["soft-shrink_0.05-n48", "soft-shrink_0.1-n48"]
    assert work(plan).train_flops == 2 * 5 * 16 * 48 * 2000 * 4
    with pytest.raises(SpecError, match=r"sae\[0\]\.shrnk.*did you mean \"shrink\""):
        spec(sae=[{"type": "soft", "shrnk": 0.1, "dict_size": 48}])
    assert "### soft" in reference()
    assert TrialConfig.model_validate_json(trial().model_dump_json()) == trial()


def test_it_trains_and_resumes_to_the_last_bit_and_is_pruned(tmp_path: Path) -> None:
    done = run(tmp_path / "whole")[-1]
    assert run(tmp_path / "resumed", stop_at=1000)[-1].info == {"why": "leave"}
    assert run(tmp_path / "resumed")[-1].values == done.values
    assert done.values["test/fvu"] < 0.9
    assert run(tmp_path / "pruned", stop_at=500, verdict=Verdict.PRUNE)[-1].info == {"why": "prune"}
    whole, resumed = load_sae(tmp_path / "whole" / "sae"), load_sae(tmp_path / "resumed" / "sae")
    assert torch.equal(whole.W_dec, resumed.W_dec)
    with pytest.raises(LayoutError, match="type soft: no other layout is known to encode as SoftSAE does"):
        export_saelens(whole, tmp_path / "there")


def test_it_is_reported_by_what_sets_its_sparsity() -> None:
    pandas = pytest.importorskip("pandas")
    row = {"sweep": "s", "type": "soft", "shrink": 0.1, "dict_size": 48, "stratum": "x", "seed": 0, "trial": 0}
    found = annotate(
        pandas.DataFrame([{**row, "samples": 2000.0, "eval/fvu": 0.5, "eval/l0": 3.0, "state": "complete"}])
    )
    assert found[["level_name", "level"]].iloc[0].tolist() == ["shrink", 0.1]
