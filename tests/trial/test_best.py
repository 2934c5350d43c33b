"""The SAE of the best validation mark is kept, whatever training makes of it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rows import RowsStore
from sae_examples import example
from test_trial import Killed, _rows, assert_same, config, run  # noqa: F401 - a fixture for all tests here

from saebench.config import SAEConfig, TrialConfig
from saebench.runs.events import Event, Verdict
from saebench.saes import load_sae, make_sae
from saebench.tracking.record import event_tags
from saebench.trial.best import BestMark
from saebench.trial.evaluation import evaluate

WORSE_AT_THE_END = {"lr": 0.5, "decay": 0.0, "samples": 4000}


def worse(**train: Any) -> TrialConfig:
    """A run that is worse at its end than before."""
    start = example("topk").model_copy(update={"start": "data"})
    return config(**WORSE_AT_THE_END, **train).model_copy(update={"sae": start})


def marks_of(reported: list[Event]) -> dict[int, float]:
    return {event.samples: event.values["eval/fvu"] for event in reported if event.type == "eval"}


def test_the_sae_of_the_best_mark_is_saved_and_measured(tmp_path: Path) -> None:
    last, best = (run(worse(keep=keep), tmp_path / keep) for keep in ("last", "best"))
    found = marks_of(last)
    lowest = min(found, key=lambda mark: found[mark])
    assert lowest < 4000, "a run that gets worse after its best mark"
    done = best[-1]
    assert lowest <= done.info["kept"] < lowest + 64, "examples seen when that mark was passed"
    assert done.info["fvu_at_end"] == found[4000] == last[-1].values["eval/fvu"]
    assert done.values["eval/fvu"] == found[lowest] == marks_of(best)[4000]
    assert {m: v for m, v in marks_of(best).items() if m < 4000} == {m: v for m, v in found.items() if m < 4000}
    sae = load_sae(tmp_path / "best" / "sae")
    again = evaluate(sae, RowsStore(64, 5), part="test").values
    assert again["test/fvu"] == pytest.approx(done.values["test/fvu"], rel=1e-5)
    assert again["test/fvu"] != pytest.approx(last[-1].values["test/fvu"], rel=1e-5)
    assert event_tags(done) == {"saebench.kept": str(done.info["kept"])}
    assert "kept" not in last[-1].info
    assert event_tags(last[-1]) == {}


@pytest.mark.parametrize("killed_at", [1500, 3000])
def test_the_best_mark_outlives_a_killed_process(tmp_path: Path, killed_at: int) -> None:
    what = worse(checkpoint_every=500)

    def die(event: Event) -> Verdict:
        if event.type == "eval" and event.samples >= killed_at:
            raise Killed
        return Verdict.GO

    run(what, tmp_path / "whole")
    with pytest.raises(Killed):
        run(what, tmp_path / "parts", die)
    reported = run(what, tmp_path / "parts")
    assert reported[0].info["resumed"]
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_pruned_trial_keeps_its_best_mark_too(tmp_path: Path) -> None:
    what = worse()
    found = marks_of(run(worse(keep="last"), tmp_path / "last"))
    low = min((mark for mark in found if mark <= 2000), key=lambda mark: found[mark])
    assert low < 2000
    reported = run(what, tmp_path, lambda event: Verdict.PRUNE if event.samples == 2000 else Verdict.GO)
    assert low <= reported[-1].info["kept"] < low + 64
    values = evaluate(load_sae(tmp_path / "sae"), RowsStore(64, 5)).values
    assert values["eval/fvu"] == pytest.approx(found[low], rel=1e-5)


def test_a_mark_counts_only_while_sparsity_is_held() -> None:
    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))

    def active(config: SAEConfig, keep: str = "best") -> bool:
        sae = make_sae(config, 16, rows, 0)
        best = BestMark(sae, keep)
        best.offer(sae, {"eval/fvu": 0.1}, 64)
        best.offer(sae, {"eval/fvu": 0.1}, 128)
        assert best.samples in (0, 64), "the earlier of two that are equal"
        return best.restore(sae, 256)

    vanilla = example("vanilla")
    held = vanilla.model_validate(vanilla.model_dump() | {"l1_coeff": None, "target_l0": 8.0})
    fixed = vanilla.model_validate(vanilla.model_dump() | {"l1_coeff": 0.1, "target_l0": None})
    assert active(example("topk"))
    assert active(held)
    assert not active(fixed), "under a fixed penalty an early mark is good because it is not sparse yet"
    assert not active(example("topk"), "last")
