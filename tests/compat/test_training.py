"""`train_sae` on the store that the same cfg feeds, and the mirror of its run."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from saebench import ActivationsStoreSBERT, VanillaSAE, get_default_cfg, post_init_cfg, sae_classes, train_sae
from saebench.compat.training import mirrored
from saebench.config import VanillaConfig
from saebench.errors import DataError
from saebench.saes import SAE

TYPES = ("vanilla", "topk", "batchtopk", "jumprelu")


class Letters:
    """An encoder of 16 dimensions that counts letters: `encode` as a SentenceTransformer has it."""

    def encode(self, texts: list[str], **_options: Any) -> Tensor:
        mixing = torch.randn(26, 16, generator=torch.Generator().manual_seed(0))
        counts = torch.tensor([[text.count(chr(97 + i)) for i in range(26)] for text in texts], dtype=torch.float32)
        return counts @ mixing + 1


@pytest.fixture
def texts(tmp_path: Path) -> str:
    generator = torch.Generator().manual_seed(1)
    words = ["sparse", "dense", "code", "latent", "sentence", "quick", "brown", "fox", "jazz", "wavy", "hymn", "block"]
    rows = [" ".join(words[int(i)] for i in torch.randint(12, (9,), generator=generator)) for _ in range(1200)]
    (tmp_path / "texts.txt").write_text("\n".join(rows))
    return str(tmp_path / "texts.txt")


def small(texts: str, kind: str, **changes: Any) -> dict[str, Any]:
    cfg = get_default_cfg()
    cfg.update({"sae_type": kind, "dataset_path": "text", "data_files": texts, "act_size": 16, "dict_size": 48})
    cfg.update({"top_k": 4, "l1_coeff": 0.01, "lr": 3e-3, "batch_size": 16, "model_batch_size": 32, "device": "cpu"})
    cfg.update({"num_examples": 1000, "perf_log_freq": 20, **changes})
    return post_init_cfg(cfg)


@pytest.mark.parametrize("kind", TYPES)
def test_one_cfg_feeds_the_store_the_sae_and_the_training(texts: str, kind: str) -> None:
    """All 1000 texts of the cap are trained on, the SAE is ready for inference, and it is better than the mean."""
    cfg, sbert = small(texts, kind), Letters()
    sae = sae_classes[cfg["sae_type"]](cfg)
    store = ActivationsStoreSBERT(model=sbert, cfg=cfg)
    last = train_sae(sae, store, sbert, cfg)
    assert not sae.training
    assert last["train/fvu"] < 0.8
    assert store.examples_used == 1000
    rows = store.sample(500)
    output = sae(rows)
    assert output["sae_out"].shape == rows.shape
    if "topk" in kind:
        assert output["l0_norm"] == pytest.approx(4, rel=0.1)
    with pytest.raises(DataError, match="every text of the store has been read"):
        train_sae(sae, store, sbert, cfg)


@pytest.mark.parametrize("before", [0, 3])
def test_rows_set_aside_for_calibration_are_never_trained_on(
    texts: str, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """One pass: as many rows as before, though those set aside are none of them."""
    cfg = small(texts, "topk")
    store = ActivationsStoreSBERT(model=Letters(), cfg=cfg)
    for _ in range(before):
        store.next_batch()
    served, held, next_batch, calibrate = list[Tensor](), list[Tensor](), store.next_batch, SAE.calibrate
    monkeypatch.setattr(store, "next_batch", lambda: served.append(next_batch()) or served[-1])
    monkeypatch.setattr(SAE, "calibrate", lambda sae, rows: held.append(rows) or calibrate(sae, rows))
    train_sae(sae_classes["topk"](cfg), store, None, cfg)
    assert store.examples_used == 1000
    everywhere = Counter(tuple(row) for row in store.sample(1000).tolist())
    aside = {row for row in map(tuple, held[0].tolist()) if everywhere[row] == 1}  # some texts have the same letters
    assert len(aside) > 100
    assert not aside & {tuple(row) for row in torch.cat(served).tolist()}


def test_a_holdout_is_evaluated_on(texts: str) -> None:
    cfg = small(texts, "batchtopk", holdout=0.2)
    last = train_sae(sae_classes["batchtopk"](cfg), ActivationsStoreSBERT(model=Letters(), cfg=cfg), None, cfg)
    assert 0 < last["eval/fvu"] < 1
    assert last["eval/l0"] == pytest.approx(4, rel=0.15)
    assert 30 < last["eval/examples"] < 110, "a third of the share is the validation part"


def test_a_typed_config_with_a_target_is_trained_to_it(texts: str) -> None:
    """Its weight is the controller's: in evaluation there is no l1_loss."""
    cfg = small(texts, "vanilla")
    sae = VanillaSAE(VanillaConfig(dict_size=48, target_l0=4), d_in=16)
    store = ActivationsStoreSBERT(model=Letters(), cfg=cfg)
    train_sae(sae, store, None, cfg)
    output = sae(store.sample(1000))
    assert output["l0_norm"] == pytest.approx(4, rel=0.15)
    assert output["l1_loss"] == 0


def test_the_store_feeds_a_loop_of_ones_own(texts: str) -> None:
    cfg = small(texts, "batchtopk")
    sae, store = sae_classes["batchtopk"](cfg), ActivationsStoreSBERT(model=Letters(), cfg=cfg)
    optimizer, losses = torch.optim.Adam(sae.parameters(), lr=cfg["lr"]), []
    for _ in range(60):
        output = sae(store.next_batch())
        losses.append(output["loss"].item())
        output["loss"].backward()
        sae.make_decoder_weights_and_grad_unit_norm()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_wrong_act_size_is_named(texts: str) -> None:
    cfg = small(texts, "topk", act_size=17)
    with pytest.raises(DataError, match="act_size: 17, but the store's embeddings have 16 dimensions"):
        train_sae(sae_classes["topk"](cfg), ActivationsStoreSBERT(model=Letters(), cfg=cfg), None, cfg)


def test_real_embeddings_through_the_documented_snippet(minilm: Any, texts: str) -> None:
    sbert = minilm
    cfg = small(texts, "batchtopk", act_size=384, num_examples=64, dict_size=64)
    cfg = post_init_cfg(cfg)
    sae = sae_classes[cfg["sae_type"]](cfg)
    store = ActivationsStoreSBERT(model=sbert, cfg=cfg)
    output = sae(store.next_batch())
    output["loss"].backward()
    assert output["sae_out"].shape == (16, 384)
    assert output["l0_norm"] == 4


# --- Weights & Biases ------------------------------------------------------------------------------------------------


class Run:
    """In place of wandb's run."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    seen, module = SimpleNamespace(run=Run(), asked={}), ModuleType("wandb")

    def init(**asked: Any) -> Run:
        seen.asked = asked
        return seen.run

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_a_project_mirrors_the_run(texts: str, wandb: SimpleNamespace) -> None:
    cfg = small(texts, "topk", wandb_project="saes", holdout=0.2, dtype=torch.float32)
    train_sae(sae_classes["topk"](cfg), ActivationsStoreSBERT(model=Letters(), cfg=cfg), None, cfg)
    assert wandb.asked["project"] == "saes"
    assert wandb.asked["name"] == cfg["name"]
    assert wandb.asked["config"]["top_k"] == 4
    assert wandb.asked["config"]["dtype"] == "torch.float32"
    steps = [step for step, _ in wandb.run.logged]
    assert steps[:2] == [320, 640]  # every 20 steps of 16
    assert steps == sorted(steps)
    assert "train/loss" in wandb.run.logged[0][1]
    assert "eval/fvu" in wandb.run.logged[-1][1]
    assert wandb.run.exit_code == 0


def test_a_run_that_fails_ends_failed_there(wandb: SimpleNamespace) -> None:
    with pytest.raises(ZeroDivisionError), mirrored("saes", "", {}):
        _ = 1 / 0
    assert wandb.run.exit_code == 1


def test_without_wandb_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with mirrored("saes", "", {}) as record:
        record(1, {"train/loss": 1.0})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "wandb_project 'saes': wandb is not installed" in said


def test_wandb_itself_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network or an account, a run's file is written."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with mirrored("saes", "a run", {"top_k": 4, "dtype": torch.float32}) as record:
        record(16, {"train/loss": 1.0})
    assert list(tmp_path.rglob("*.wandb"))
