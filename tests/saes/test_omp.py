"""Matching pursuit as an SAE type: what is its own beside the formulas that every type is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import formulas
import pytest
import torch
from rows import RowsStore
from sae_examples import example

from saebench.config import OMPConfig, TrainConfig
from saebench.errors import UserError
from saebench.saes import Moment, NotCalibratedError, gram_memory, load_sae, make_sae, omp, save_sae
from saebench.saes.gram_memory import GramMemoryError, TooWideError
from saebench.saes.omp import OMPSAE
from saebench.saes.pursuit import pursue
from saebench.trial.trainer import Training
from saebench.worker import classify


def small(**fields: Any) -> OMPSAE:
    sae = formulas.small("omp", **fields)
    assert isinstance(sae, OMPSAE)
    return sae


def test_codes_are_those_of_the_definition() -> None:
    sae, x = small(k=6, refit_every=3), formulas.cloud(40, seed=2)
    z = formulas.model_space(sae, x)
    expected = formulas.codes(sae, formulas.double(sae), z)
    torch.testing.assert_close(sae.encode(x).double(), expected, atol=1e-5, rtol=0)
    assert int((sae.encode(x) > 0).sum(1).max()) <= 6


def test_it_has_no_encoder_of_its_own() -> None:
    names = [name for name, _ in small().named_parameters()]
    assert names == ["W_dec", "b_dec"]
    with pytest.raises(TypeError, match="call encode"):
        small().activate(torch.zeros(1, 24))


def test_codes_follow_the_decoder_when_it_changes() -> None:
    """Products of its rows are kept between calls."""
    sae, x = small(), formulas.cloud(10)
    before = sae.encode(x)
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.flip(0))
    assert torch.equal(sae.encode(x).flip(1) > 0, before > 0)


def test_products_are_computed_anew_when_rows_have_moved_or_after_eight_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x, computed = small(), formulas.cloud(16), []
    original = omp._products
    monkeypatch.setattr(omp, "_products", lambda rows: computed.append(1) or original(rows))
    for _ in range(17):
        sae.loss(x, Moment())
    assert len(computed) == 3
    with torch.no_grad():
        sae.W_dec.add_(0.1)
        sae.constrain()
    sae.loss(x, Moment())
    assert len(computed) == 4


def test_the_loss_sees_the_decoder_at_hand_between_two_computations_of_the_products() -> None:
    """Seven of eight steps pick by products that are old; the values are swept on the residual itself."""
    sae, x = small(k=6, start="data"), formulas.cloud(64)
    sae.loss(x, Moment())
    with torch.no_grad():
        sae.W_dec.add_(0.02 * torch.randn(24, 8, generator=torch.Generator().manual_seed(0)))
        sae.constrain()
    stale = float(sae.loss(x, Moment()).fvu)
    z = formulas.model_space(sae, x).float()
    fresh = pursue(z - sae.b_dec.detach(), sae.W_dec, sae.W_dec @ sae.W_dec.t(), 6, 2).residual
    assert stale == pytest.approx(float(sae.share(fresh)), rel=0.05)


# --- target_l0 --------------------------------------------------------------------------------------------------------


def test_calibration_hits_the_target_on_the_rows() -> None:
    sae, rows = small(target_l0=2.5), formulas.cloud(400, seed=4)
    sae.calibrate(rows)
    l0 = (sae.encode(rows) > 0).sum(1).double()
    assert float(l0.mean()) == pytest.approx(2.5, abs=0.05), "refits may drop a pick"
    assert float(l0.std()) > 0.3, "an example gets as many as it needs"
    threshold = float(sae.threshold)
    sae.calibrate(rows)
    assert float(sae.threshold) == threshold


def test_a_threshold_spends_latents_better_than_k_does() -> None:
    """At the same mean L0 the same dictionary leaves less error."""
    sae, rows = small(target_l0=3.0), formulas.cloud(800, seed=4)
    sae.calibrate(rows)
    z = formulas.model_space(sae, rows).float() - sae.b_dec.detach()
    fixed = pursue(z, sae.W_dec, sae.gram(), 3, 2)
    free = sae.pursue(z)
    assert float((free.values > 0).sum()) <= float((fixed.values > 0).sum()) * 1.01
    assert float(free.residual.square().sum()) < float(fixed.residual.square().sum())


def test_a_controller_brings_training_to_the_target() -> None:
    sae, rows = small(target_l0=3.0), formulas.cloud(512, seed=4)
    sae.threshold.fill_(1e-3)
    seen = [float(sae.loss(rows, Moment()).l0) for _ in range(40)]
    assert seen[0] > 3.5
    assert seen[-1] == pytest.approx(3.0, abs=0.1)


def test_without_calibration_nothing_is_encoded() -> None:
    sae = OMPSAE(example("omp", dict_size=24, target_l0=2.0), 8)  # type: ignore[arg-type]
    with pytest.raises(NotCalibratedError, match="call calibrate"):
        sae.encode(formulas.cloud(2))
    with pytest.raises(ValueError, match="rows: empty"):
        sae.calibrate(torch.empty(0, 8))


# --- input that is odd ------------------------------------------------------------------------------------------------


def test_give_k_or_target_l0() -> None:
    for fields in ({"k": None}, {"k": 3, "target_l0": 3.0}):
        with pytest.raises(ValueError, match="give k or target_l0, one of the two"):
            example("omp", **fields)


def test_duplicates_zero_rows_and_few_data() -> None:
    """Eight directions, k 20: the pursuit stops where nothing is left, and L0 says so."""
    x = torch.eye(8).repeat(8, 1) * 3 + 0.01 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    sae = make_sae(example("omp", dict_size=40, k=20, start="data", preprocess="none"), 8, x, 0)
    with torch.no_grad():
        sae.W_dec[20:] = sae.W_dec[:20]
        sae.b_dec.zero_()
    latents = sae.encode(torch.cat([torch.zeros(1, 8), x]))
    assert not latents[0].any(), "a row of zeros has no code"
    assert float((latents > 0).sum(1).float().mean()) < 19
    loss = sae.loss(x, Moment())
    loss.total.backward()
    assert loss.total.isfinite()


@pytest.mark.parametrize(
    ("total", "free", "error", "kind", "said"),
    [
        (2**30, 2**30, TooWideError, "user_error", r"take 2\.0 GiB, cpu has 1\.0 GiB in all"),
        (2**33, 2**28, GramMemoryError, "host_oom", r"take 2\.0 GiB, 0\.2 GiB are free on cpu"),
    ],
)
def test_products_that_do_not_fit_are_named_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, total: int, free: int, error: type[UserError], kind: str, said: str
) -> None:
    """What no attempt could hold is the user's error; what other trials hold now gets another attempt."""
    monkeypatch.setattr(gram_memory, "memory", lambda _: (total, free))
    with pytest.raises(error, match=f"dict_size 16384: .* {said}") as raised:
        gram_memory.check_memory(16_384, torch.device("cpu"), 2)
    assert classify(raised.value) == kind
    gram_memory.check_memory(2048, torch.device("cpu"), 2)  # 32 MiB: nothing is asked


def test_a_training_asks_for_that_memory_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(omp, "check_memory", lambda dict_size, _, copies: asked.append((dict_size, copies)))
    store: Any = RowsStore(batch_size=32, seed=0)
    Training.start(OMPConfig(k=2, dict_size=24), TrainConfig(samples=64, batch_size=32), 0, store)
    assert (24, 2) in asked
    asked.clear()
    monkeypatch.setattr(omp, "GRAM_WIDTH", 23)
    Training.start(OMPConfig(k=2, dict_size=24), TrainConfig(samples=64, batch_size=32), 0, store)
    assert not asked, "above that width there are none"


def test_free_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gram_memory, "_CGROUP", tmp_path)
    whole = gram_memory.memory(torch.device("cpu"))
    assert whole is not None
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert gram_memory.memory(torch.device("cpu")) == (1_000_000, 600_000)
    (tmp_path / "memory.max").write_text("max\n")
    found = gram_memory.memory(torch.device("cpu"))
    assert found is not None
    assert found[0] == whole[0]


def test_a_wide_dictionary_trains_and_encodes_without_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    x = formulas.cloud(64)
    kept = small(k=6, refit_every=3)
    with_products, loss = kept.encode(x), float(kept.loss(x, Moment()).total.detach())
    monkeypatch.setattr(omp, "GRAM_WIDTH", 23)
    wide = small(k=6, refit_every=3)
    assert wide.gram() is None
    torch.testing.assert_close(wide.encode(x), with_products, atol=1e-5, rtol=0)
    assert float(wide.loss(x, Moment()).total.detach()) == pytest.approx(loss, rel=1e-5)


def test_saved_and_loaded_it_encodes_the_same(tmp_path: Any) -> None:
    sae, x = small(target_l0=2.0), formulas.cloud(20)
    sae.calibrate(formulas.cloud(200))
    loaded = load_sae(save_sae(sae, tmp_path))
    assert torch.equal(loaded.encode(x), sae.encode(x))
    with torch.inference_mode():
        assert torch.equal(load_sae(tmp_path).encode(x), sae.encode(x))
