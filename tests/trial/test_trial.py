from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rows import RowsStore, open_rows
from sae_examples import TYPES, example
from safetensors.torch import load_file

from saebench import stores
from saebench.config import DataConfig, DatasetConfig, TrainConfig, TrialConfig, marks
from saebench.metrics import METRICS
from saebench.runs.events import Event, EventLog, Verdict, read
from saebench.runs.paths import TrialPaths
from saebench.saes import load_sae
from saebench.trial import metrics
from saebench.trial import run as trial
from saebench.trial.recorded import finite, numbers
from saebench.trial.run import run_trial
from saebench.trial.usage import gpu_uuid
from saebench.worker import classify


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store without texts; one thread, because more of them take turns where the tests share two cores."""
    monkeypatch.setattr(stores, "open_store", open_rows)
    monkeypatch.setattr("os.fsync", lambda _: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(kind: str = "topk", **train: Any) -> TrialConfig:
    """2,000 examples in 32 steps of 64; a mark every 500 examples."""
    given = {"samples": 2000, "batch_size": 64, "lr": 3e-3, "eval_every": 500, "log_every": 100, "dead_after": 640}
    return TrialConfig(
        sweep="s",
        number=0,
        stratum="x",
        point="p",
        seed=5,
        data=DataConfig(model="m", dataset=DatasetConfig(path="p"), num_examples=800),
        sae=example(kind),
        train=TrainConfig.model_validate({**given, **train}),
    )


class Killed(BaseException):
    """SIGKILL, as far as one process can show it."""


def run(
    config: TrialConfig,
    folder: Path,
    answer: Callable[[Event], Verdict] = lambda _: Verdict.GO,
    pending: Callable[[], Verdict] = trial.always_go,
    device: str = "cpu",
) -> list[Event]:
    """One attempt, recorded as a worker records it; what it reported."""
    paths, reported = TrialPaths(folder), list[Event]()
    log = EventLog(paths.events)

    def report(event: Event) -> Verdict:
        log.append(event)
        reported.append(event)
        return answer(event)

    try:
        run_trial(config, paths, device, report, cache_dir=folder, pending=pending)
    finally:
        log.close()
    return reported


def history(folder: Path) -> list[Any]:
    """What must be the same however often a trial was interrupted."""
    events = [event for event, _ in read(folder / "events.jsonl") if event.type in ("step", "eval", "done")]
    found = [(e.type, e.samples, {k: v for k, v in e.values.items() if not k.startswith("system/")}) for e in events]
    return sorted(found, key=lambda entry: (entry[1], entry[0]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae" / "sae.safetensors") | load_file(folder / "evaluation.safetensors")


def assert_same(one: Path, other: Path) -> None:
    assert history(one) == history(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


OF_THE_DECODER = ("c_dec", "c_dec_floor")
"""Metrics of the decoder, measured once, at the end."""


def test_an_undisturbed_trial_tells_its_whole_story(tmp_path: Path) -> None:
    """A batch of 64 passes the mark 500 at 512 samples; the eval counts for the mark, so that trials compare."""
    reported = run(config(), tmp_path)
    assert reported[0].type == "start"
    assert [event.samples for event in reported if event.type == "eval"] == [500, 1000, 1500, 2000]
    steps = [event.samples for event in reported if event.type == "step"]
    assert steps[:4] == [128, 256, 320, 448]  # the first steps past 100, 200, 300, 400
    assert (steps[-1], len(steps)) == (2000, 20)
    assert (reported[-1].type, reported[-1].samples) == ("done", 2000)
    final = reported[-1].values
    assert {key: value for key, value in final.items() if key.startswith("eval/")} == reported[-2].values
    assert 0 < final["train_sample/fvu"] < final["test/fvu"], "600 rows, seen three times"
    assert {key.removeprefix("test/") for key in final if key.startswith("test/")} == {
        *(key.removeprefix("eval/") for key in reported[-2].values),
        *OF_THE_DECODER,
    }, "the same metrics on both parts"
    assert not [key for event in reported[:-1] for key in event.values if key.startswith("test/")], "once, at the end"
    assert final["test/fvu"] != final["eval/fvu"]
    assert reported[0].info["threads"] == torch.get_num_threads()


def test_what_a_trial_leaves_behind(tmp_path: Path) -> None:
    values = run(config(), tmp_path)[-1].values
    sae = load_sae(tmp_path / "sae")
    evaluation = load_file(tmp_path / "evaluation.safetensors")
    rows = torch.cat(list(RowsStore(64, 5).test()))
    with torch.no_grad():
        error = (sae(rows) - rows).square().sum(1)
    torch.testing.assert_close(evaluation["squared_error"], error, rtol=1e-4, atol=1e-6)
    assert evaluation["squared_error"].double().mean().item() / 16 == pytest.approx(values["test/mse"])
    assert {name: (t.dtype, tuple(t.shape)) for name, t in evaluation.items()} == {
        "squared_error": (torch.float32, (100,)),
        "cosine": (torch.float32, (100,)),
        "l0": (torch.int32, (100,)),
        "firing": (torch.int64, (48,)),
    }
    assert int(evaluation["l0"].sum()) == int(evaluation["firing"].sum())
    assert 0.2 < values["eval/explained_variance"] < 1
    assert not (tmp_path / "checkpoint").exists()


class LabelledRows(RowsStore):
    """The label of a row is the sign of its first coordinate."""

    def train_labels(self, n: int) -> list[bool]:  # type: ignore[override]
        return (self.sample(n)[:, 0] > 0).tolist()

    def validation_labels(self) -> list[bool]:  # type: ignore[override]
        return (next(self.validation())[:, 0] > 0).tolist()

    def test_labels(self) -> list[bool]:  # type: ignore[override]
        return (next(self.test())[:, 0] > 0).tolist()


def test_the_extra_metrics_come_with_the_last_evaluation_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "open_store", lambda _, *, batch_size, seed, **__: LabelledRows(batch_size, seed))
    extra = ("knn_overlap_at_10", "similarity_rank_correlation", "probing")
    reported = run(config().model_copy(update={"extra_metrics": extra}), tmp_path)
    first, last, done = next(e for e in reported if e.type == "eval"), reported[-2], reported[-1]
    sizes = [*(f"k{k}{suffix}" for k in (1, 5, 20) for suffix in ("", "_raw", "_pca")), "all_raw"]
    added = {f"probing_{score}_{size}" for score in ("auc", "accuracy") for size in sizes}
    added |= {*extra[:2], "knn_overlap_at_10_chance"}
    assert last.values.keys() - first.values.keys() == {f"eval/{name}" for name in added}
    tested = {key for key in done.values if key.startswith("test/")}
    assert tested == {*(key.replace("eval/", "test/") for key in last.values), *(f"test/{n}" for n in OF_THE_DECODER)}
    assert last.values.items() <= done.values.items()
    wanted = {name for name, metric in METRICS.items() if metric.extra in (None, *extra) and not metric.test_only}
    assert {f"{part}/{name}" for name in wanted for part in ("eval", "test")} <= done.values.keys()
    assert done.values["eval/probing_auc_k1_raw"] == 1, "one raw coordinate tells the class, by the definition of it"
    basic = {f"eval/{name}" for name, metric in METRICS.items() if metric.extra is None and not metric.test_only}
    assert first.values.keys() - {"eval/examples"} == basic


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory"), ValueError("two texts")])
def test_a_metric_that_fails_is_left_out_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setitem(metrics.EXTRAS, "knn_overlap_at_10", fails)
    extra = ("knn_overlap_at_10", "similarity_rank_correlation")
    done = run(config().model_copy(update={"extra_metrics": extra}), tmp_path)[-1]
    assert done.type == "done"
    assert {"eval/similarity_rank_correlation", "test/similarity_rank_correlation"} <= done.values.keys()
    assert not any("knn" in key for key in done.values)
    reason = str(error) or "MemoryError"
    assert done.info == {"left_out": {"knn_overlap_at_10": reason}}
    assert f"warning: knn_overlap_at_10 is not recorded: {reason}" in capsys.readouterr().err
    assert load_sae(tmp_path / "sae").dict_size == 48


def test_a_trial_killed_in_a_metric_has_saved_its_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setitem(metrics.EXTRAS, "knn_overlap_at_10", killed)
    with pytest.raises(Killed):
        run(config().model_copy(update={"extra_metrics": ("knn_overlap_at_10",)}), tmp_path)
    assert load_sae(tmp_path / "sae").dict_size == 48


def test_without_labels_a_trial_ends_well_and_without_probing(tmp_path: Path) -> None:
    reported = run(config().model_copy(update={"extra_metrics": ("probing",)}), tmp_path)
    assert reported[-1].type == "done"
    assert not any("probing" in key for key in reported[-1].values)


def test_speed_is_told_and_is_no_part_of_the_history(tmp_path: Path) -> None:
    reported = run(config(), tmp_path)
    speeds = [event.values["system/samples_per_second"] for event in reported if event.type == "step"]
    assert all(speed > 0 for speed in speeds)
    assert not any("system/samples_per_second" in entry[2] for entry in history(tmp_path))


def test_a_batch_that_passes_several_marks_is_on_record_for_each(tmp_path: Path) -> None:
    reported = run(config(samples=1000, batch_size=256, eval_every=100), tmp_path)
    evals = [event for event in reported if event.type == "eval"]
    assert [event.samples for event in evals] == list(marks(config(samples=1000, eval_every=100).train))
    assert evals[2].values == evals[3].values != evals[1].values  # 300, 400 and 500 are passed at 512; 200 at 256


def test_a_pruned_trial_keeps_its_sae(tmp_path: Path) -> None:
    reported = run(config(), tmp_path, lambda event: Verdict.PRUNE if event.samples == 1000 else Verdict.GO)
    assert (reported[-1].type, reported[-1].samples, reported[-1].info) == ("left", 1024, {"why": "prune"})
    assert load_sae(tmp_path / "sae").dict_size == 48
    assert load_file(tmp_path / "evaluation.safetensors")["squared_error"].shape == (100,), "the test part"


def test_a_verdict_at_the_end_of_the_budget_changes_nothing(tmp_path: Path) -> None:
    reported = run(config(), tmp_path, lambda event: Verdict.PRUNE if event.samples == 2000 else Verdict.GO)
    assert reported[-1].type == "done"


def test_a_request_to_leave_is_seen_at_the_next_step(tmp_path: Path) -> None:
    asked = iter([Verdict.GO, Verdict.GO, Verdict.LEAVE])
    reported = run(config(), tmp_path, pending=lambda: next(asked))
    assert (reported[-1].type, reported[-1].samples, reported[-1].info) == ("left", 3 * 64, {"why": "leave"})
    assert [event.type for event in reported][-2:] == ["checkpoint", "left"]
    run(config(), tmp_path)
    run(config(), tmp_path / "undisturbed")
    assert_same(tmp_path, tmp_path / "undisturbed")


@pytest.mark.parametrize("kind", TYPES)
def test_a_trial_killed_anywhere_ends_as_if_nothing_had_happened(tmp_path: Path, kind: str) -> None:
    """Five deaths at events drawn from a seed, checkpoints at odd places; histories and weights to the last bit."""
    ours = config(kind, checkpoint_every=150)
    run(config(kind), tmp_path / "undisturbed")
    chance = random.Random(kind)
    for attempt in range(5):
        left = chance.randrange(2, 12)

        def die(_: Event) -> Verdict:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return Verdict.GO

        with pytest.raises(Killed):
            run(ours, tmp_path, die)
        assert attempt == 0 or [e for e, _ in read(tmp_path / "events.jsonl") if e.type == "start"][-1].samples > 0
    run(ours, tmp_path)
    assert_same(tmp_path, tmp_path / "undisturbed")


def leave_at(mark: int) -> Callable[[Event], Verdict]:
    return lambda event: Verdict.LEAVE if event.type == "eval" and event.samples == mark else Verdict.GO


def test_an_interrupted_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run(config(), tmp_path, leave_at(1000))
    reported = run(config(), tmp_path)
    assert (reported[0].samples, reported[0].info["resumed"]) == (1024, "000000001024")
    assert [event.samples for event in reported if event.type == "eval"] == [1500, 2000]
    run(config(), tmp_path / "undisturbed")
    assert_same(tmp_path, tmp_path / "undisturbed")


@pytest.mark.parametrize(("damaged", "begins"), [(1, 512), (2, 0)])
def test_a_damaged_checkpoint_costs_time_and_no_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: int, begins: int
) -> None:
    run(config(checkpoint_every=500), tmp_path, leave_at(1000))
    for place in sorted((tmp_path / "checkpoint").iterdir())[-damaged:]:
        with (place / "tensors.safetensors").open("r+b") as file:
            file.truncate(1000)
    reported = run(config(), tmp_path)
    assert reported[0].samples == begins
    assert "checkpoint 000000001024 is skipped" in capsys.readouterr().err
    run(config(), tmp_path / "undisturbed")
    assert_same(tmp_path, tmp_path / "undisturbed")


@pytest.mark.parametrize(("cut", "begins"), [(10, 1024), (2000, 512), (100_000, 0)])
def test_a_record_that_lost_its_end_is_written_again(tmp_path: Path, cut: int, begins: int) -> None:
    """The last line is torn; points before the newest checkpoint are lost; the whole record is."""
    run(config(checkpoint_every=500), tmp_path, leave_at(1000))
    record = tmp_path / "events.jsonl"
    record.write_bytes(record.read_bytes()[:-cut])
    assert run(config(), tmp_path)[0].samples == begins
    run(config(), tmp_path / "undisturbed")
    assert_same(tmp_path, tmp_path / "undisturbed")


@pytest.mark.parametrize("verdict", [Verdict.GO, Verdict.PRUNE])
def test_an_end_on_record_is_told_again_and_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    """The scheduler may have died before it heard."""
    first = run(config(), tmp_path, lambda event: verdict if event.samples == 1000 else Verdict.GO)
    monkeypatch.setattr(stores, "open_store", None)
    assert run(config(), tmp_path) == [first[-1]]


def test_the_default_checkpoints_are_some_time_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [event for event in run(config(), tmp_path / "a") if event.type == "checkpoint"]
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0.0)
    reported = run(config(), tmp_path / "b")
    assert [event.samples for event in reported if event.type == "checkpoint"] == [512, 1024, 1536]


def test_the_first_and_the_last_step_say_what_the_trial_takes_of_its_machine(tmp_path: Path) -> None:
    """And those in between that are ten seconds later; none here."""
    steps = [event for event in run(config(), tmp_path) if event.type == "step"]
    reported = [event for event in steps if "system/process_memory_megabytes" in event.values]
    assert [event.samples for event in reported] == [steps[0].samples, 2000]
    assert 0 < reported[0].values["system/process_cpu_seconds"] <= reported[1].values["system/process_cpu_seconds"]


def test_the_gpu_that_nvml_is_asked_about_is_the_leased_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-second,GPU-other")
    assert gpu_uuid(device) == "GPU-second"
    assert gpu_uuid(torch.device("cuda", 1)) == "GPU-other"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="first"))
    for mask in ("0", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
        assert gpu_uuid(device) == "GPU-first"
    assert gpu_uuid(torch.device("cpu")) is None


@pytest.mark.parametrize("mark", [0, 500])
def test_an_attempt_keeps_the_threads_that_its_bits_depend_on(tmp_path: Path, mark: int) -> None:
    """Whether it goes on from a checkpoint or begins again."""
    torch.set_num_threads(2)
    run(config(), tmp_path, leave_at(mark), pending=lambda: Verdict.GO if mark else Verdict.LEAVE)
    if mark == 0:
        shutil.rmtree(tmp_path / "checkpoint")
    torch.set_num_threads(1)
    reported = run(config(), tmp_path)
    assert reported[0].info["threads"] == torch.get_num_threads() == 2


def test_a_trial_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError) as error:
        run(config("vanilla", lr=1e30, warmup=0), tmp_path)
    assert classify(error.value) == "diverged"
    assert not (tmp_path / "sae").exists()


def test_determinism_is_asked_for_and_given_back(tmp_path: Path) -> None:
    modes = []
    run(config(), tmp_path, lambda _: (modes.append(torch.get_deterministic_debug_mode()), Verdict.GO)[1])
    assert set(modes) == {2}
    assert torch.get_deterministic_debug_mode() == 0


def test_metrics_are_read_off_with_one_transfer() -> None:
    values = numbers({"a": torch.tensor(0.5), "b": 2.0, "c": torch.tensor(3)})
    assert values == {"a": 0.5, "b": 2.0, "c": 3.0}
    assert list(values) == ["a", "b", "c"]
    assert numbers({}) == {}


def test_a_metric_that_is_no_number_is_divergence() -> None:
    with pytest.raises(FloatingPointError, match="eval/fvu is nan at 300 samples"):
        finite({"eval/l0": 1.0, "eval/fvu": float("nan")}, 300)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", TYPES)
def test_resuming_is_exact_on_cuda_too_where_asked_for(tmp_path: Path, kind: str) -> None:
    ours = config(kind, deterministic=True)
    run(ours, tmp_path / "undisturbed", device="cuda:0")
    run(ours, tmp_path, leave_at(1000), device="cuda:0")
    run(ours, tmp_path, device="cuda:0")
    assert_same(tmp_path, tmp_path / "undisturbed")
