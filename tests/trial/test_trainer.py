"""Training one SAE: exact continuation, the step's order, what it refuses, what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from sae_examples import K_SPARSE, PENALISED, TYPES, example
from torch import Tensor

from saebench.config import SAEConfig, TopKConfig, TrainConfig, VanillaConfig, default_batch_size
from saebench.errors import UserError
from saebench.saes import SAE_TYPES, NotCalibratedError, load_sae, save_sae
from saebench.trial.calibration import calibration_rows
from saebench.trial.dead import default_dead_after
from saebench.trial.evaluation import evaluate
from saebench.trial.health import BadBatchError, CollapsedError, DivergedError
from saebench.trial.optim import schedule
from saebench.trial.trainer import (
    Training,
    train,
)
from saebench.worker import classify

D_IN = 12


class Rows:
    """A store over a tensor: epochs reshuffled from (seed, epoch), remainders carried over."""

    def __init__(self, train: Tensor, holdout: Tensor, batch_size: int, seed: int = 0) -> None:
        self.train, self.rows, self.batch_size, self.seed, self.position = train, holdout, batch_size, seed, 0
        self.d_in, self.num_train = train.shape[1], len(train)
        self.served = torch.arange(self.num_train)

    def next_batch(self) -> Tensor:
        parts, need = [], self.batch_size
        while need:
            epoch, start = divmod(self.position, len(self.served))
            generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
            order = self.served[torch.randperm(len(self.served), generator=generator)]
            parts.append(self.train[order[start : start + need]])
            need -= len(parts[-1])
            self.position += len(parts[-1])
        return torch.cat(parts)

    def sample(self, n: int) -> Tensor:
        return self.train[:n]

    def set_aside(self, _: int, places: Tensor) -> None:
        rest = torch.ones(self.num_train, dtype=torch.bool).index_fill(0, places, False)
        self.served = rest.nonzero().squeeze(1)

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        yield from self.rows.split(batch_size)

    def train_labels(self, n: int) -> list[Any] | None:
        return [int(row[0] > 0) for row in self.train[:n]]

    def test(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return self.validation(batch_size)

    def test_labels(self) -> list[Any] | None:
        return self.validation_labels()

    def validation_labels(self) -> list[Any] | None:
        return [int(row[0] > 0) for row in self.rows]


def sparse_rows(n: int, seed: int = 0) -> Tensor:
    """Sums of 3 of 30 directions: something an SAE can learn."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.nn.functional.normalize(torch.randn(30, D_IN, generator=generator), dim=1)
    generator.manual_seed(seed)
    chosen = torch.rand(n, 30, generator=generator).topk(3, dim=1).indices
    weights = torch.rand(n, 3, generator=generator) + 0.5
    return (directions[chosen] * weights[:, :, None]).sum(1) + 0.3


def store(batch_size: int = 64, n: int = 1000) -> Rows:
    rows = sparse_rows(n + 400)
    return Rows(rows[:n], rows[n:], batch_size)


class What(NamedTuple):
    """What a training is made from, but for the rows."""

    sae: SAEConfig
    train: TrainConfig
    seed: int


def config(kind: str = "topk", sae: dict[str, Any] | None = None, seed: int = 0, **fields: Any) -> What:
    train = TrainConfig(**{"samples": 3000, "batch_size": 64, "lr": 3e-3, "dead_after": 400, **fields})
    return What(example(kind, **(sae or {})), train, seed)


def run(training: Training, rows: Rows, until: int | None = None) -> list[dict[str, float]]:
    """Step by step to `until` samples, or to the end; the metrics of every step."""
    seen = []
    budget = training.train.samples
    while training.samples < (until or budget):
        metrics = training.advance(rows.next_batch()[: budget - training.samples])
        seen.append({name: float(value) for name, value in metrics.items()})
    return seen


# --- exact continuation ----------------------------------------------------------------------------------------------


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in TYPES),
    ("topk", {"ortho_coeff": 0.1, "ortho_chunk": 20}),
    ("batchtopk", {"k_start": 16, "k_anneal": 0.8}),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "fields"), OPTIONS)
def test_two_halves_with_fresh_objects_between_equal_one_run_bit_for_bit(
    kind: str, fields: dict[str, Any], precision: str
) -> None:
    trial = config(kind, fields, precision=precision)
    rows = store()
    whole = Training.start(*trial, rows)
    curve = run(whole, rows)
    whole.calibrate()

    rows = store()
    first = Training.start(*trial, rows)
    halves = run(first, rows, until=1500)
    first.calibrate()  # evaluations in between change nothing of the training
    tensors, meta = first.state_dict()
    position = rows.position
    del first

    rows = store()
    second = Training.start(*trial, rows)
    second.load_state_dict(tensors, meta)
    rows.position = position
    halves += run(second, rows)
    second.calibrate()

    assert halves == curve
    (ours, about), (theirs, expected) = second.state_dict(), whole.state_dict()
    assert about == expected
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert evaluate(second.sae, rows).values == evaluate(whole.sae, rows).values


def test_the_list_of_dead_latents_continues_too() -> None:
    """It is drawn up every third step here; a fresh one, made between two of those, would be another list."""
    trial, rows = config(batch_size=16, dead_after=400), store(16)
    whole = Training.start(*trial, rows)
    with torch.no_grad():
        whole.sae.b_enc[:10] -= 3
    run(whole, rows, until=16 * 28)
    assert whole.step % 3 == 1
    assert len(whole.dead.index) >= 10
    tensors, meta = whole.state_dict()
    position = rows.position
    curve = run(whole, rows, until=16 * 30)
    again = Training.start(*trial, rows)
    again.load_state_dict(tensors, meta)
    rows.position = position
    assert run(again, rows, until=16 * 30) == curve
    assert curve[0]["train/aux_loss"] > 0


def test_the_products_that_a_pursuit_picks_by_continue_too() -> None:
    """They are three steps old here; fresh ones would pick other latents."""
    trial, rows = config("omp", batch_size=16), store(16)
    whole = Training.start(*trial, rows)
    run(whole, rows, until=16 * 11)
    tensors, meta = whole.state_dict()
    assert not torch.equal(tensors["state.gram_rows"], tensors["sae.W_dec"])
    position = rows.position
    curve = run(whole, rows, until=16 * 20)
    again = Training.start(*trial, rows)
    again.load_state_dict(tensors, meta)
    rows.position = position
    assert run(again, rows, until=16 * 20) == curve


def test_a_checkpoint_is_tensors_and_json() -> None:
    import json

    rows = store()
    training = Training.start(*config(), rows)
    run(training, rows, until=200)
    tensors, meta = training.state_dict()
    assert all(isinstance(t, Tensor) and t.is_contiguous() and t.device.type == "cpu" for t in tensors.values())
    assert json.loads(json.dumps(meta)) == meta
    before = tensors["sae.W_enc"].clone()
    run(training, rows, until=400)
    assert torch.equal(tensors["sae.W_enc"], before), "what was handed out does not move with the training"


def test_a_checkpoint_of_something_else_is_refused() -> None:
    rows = store()
    tensors, meta = Training.start(*config("topk"), rows).state_dict()
    for other in (config("vanilla"), config("topk", {"dict_size": 24})):
        with pytest.raises(ValueError, match="another SAE type, width"):
            Training.start(*other, rows).load_state_dict(tensors, meta)
    with pytest.raises(UserError, match=r"checkpoint of version 99, this saebench reads .* resume with"):
        Training.start(*config("topk"), rows).load_state_dict(tensors, {**meta, "version": 99})


def test_nobody_elses_random_numbers_change_or_matter() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        rows = store()
        training = Training.start(*config("batchtopk", samples=640), rows)
        run(training, rows)
        training.calibrate()
        evaluate(training.sae, rows, ("knn_overlap_at_10", "similarity_rank_correlation", "probing"))
        assert torch.equal(torch.get_rng_state(), state)
        results.append(training.sae.W_dec.detach())
    assert torch.equal(*results)


def test_the_seed_matters() -> None:
    one, two = (Training.start(*config(seed=s), store()).sae.W_dec for s in (0, 1))
    assert not torch.equal(one, two)


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_training_learns_and_keeps_the_decoder_on_the_sphere(kind: str) -> None:
    rows = store()
    sae = {"encoder_scale": 1.0} if kind in ("gated", "vanilla") else {}  # at a tenth gated ends at a higher L0
    training = Training.start(*config(kind, sae, samples=10_000, lr=1e-2), rows)
    curve = run(training, rows)
    torch.testing.assert_close(training.sae.W_dec.norm(dim=1), torch.ones(48))
    training.calibrate()
    values = evaluate(training.sae, rows).values
    assert values["eval/explained_variance"] > 0.5
    assert values["eval/l0"] < 16
    if kind != "omp":  # which starts better than these toys end
        assert curve[-1]["train/fvu"] < 0.8 * curve[0]["train/fvu"]
    wanted = {"train/loss", "train/fvu", "train/l0", "train/dead_features", "train/lr"}
    assert wanted <= curve[0].keys()
    assert ("train/sparsity_coeff" in curve[0]) == (kind in PENALISED)


def test_one_step_equals_plain_adam_on_the_same_gradients() -> None:
    """Loss, backward, projection, clipping, Adam, renormalisation, in this order, written out once more."""
    rows, trial = store(), config("topk", {"aux_coeff": 0.0}, grad_clip=0.01, warmup=0.0, decay=0.0, encoder_decay=0.0)
    ours, reference = Training.start(*trial, rows), Training.start(*trial, rows).sae
    optimizer = torch.optim.Adam(reference.parameters(), lr=3e-3, eps=6.25e-10, fused=False, foreach=False)
    from saebench.saes import Moment

    for _ in range(3):
        x = rows.next_batch()
        ours.advance(x)
        optimizer.zero_grad()
        reference.loss(x, Moment()).total.backward()
        gradient = reference.W_dec.grad
        assert gradient is not None
        gradient -= (gradient * reference.W_dec.detach()).sum(1, keepdim=True) * reference.W_dec.detach()
        total = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None]).norm()
        assert total > 0.01, "nothing is clipped: the test shows less than it says"
        for parameter in reference.parameters():
            assert parameter.grad is not None
            parameter.grad *= 0.01 / (total + 1e-6)
        optimizer.step()
        with torch.no_grad():
            reference.W_dec /= reference.W_dec.norm(dim=1, keepdim=True)
    for one, two in zip(ours.sae.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_adam_is_torchs_on_dense_float64_gradients_also_for_latents_that_rest() -> None:
    """25 steps of topk in which latents come and go, against autograd on the dense formula and torch.optim.Adam: what
    did not fire goes on by its momentum."""
    sae = {"aux_coeff": 0.0, "preprocess": "none", "dict_size": 240}
    trial = config("topk", sae, grad_clip=0.2, warmup=0, decay=0, encoder_decay=0)
    rows, generator = store(), torch.Generator().manual_seed(0)
    training = Training.start(*trial, rows)
    p = {n: q.detach().double().contiguous().requires_grad_() for n, q in training.sae.named_parameters()}
    reference = torch.optim.Adam(p.values(), lr=3e-3, eps=6.25e-10, fused=False, foreach=False)
    rested = torch.zeros(240, dtype=torch.bool)
    for _ in range(25):
        x = sparse_rows(32, seed=int(torch.randint(1 << 30, (), generator=generator)))
        training.advance(x)
        z = x.double()
        pre = (z - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
        place = pre.topk(4, dim=1).indices
        f = torch.zeros_like(pre).scatter(1, place, pre.gather(1, place).relu())
        loss = ((z - f @ p["W_dec"] - p["b_dec"]) ** 2).sum(1).mean() / float(training.sae.variance)
        reference.zero_grad()
        loss.backward()
        W, g = p["W_dec"], p["W_dec"].grad
        assert g is not None
        with torch.no_grad():
            g -= (g * W).sum(1, keepdim=True) * W
            moving = reference.state[W]["exp_avg"].abs().sum(1) if W in reference.state else torch.zeros(240)
            rested |= (f == 0).all(0) & (moving > 0)
        torch.nn.utils.clip_grad_norm_(p.values(), 0.2)
        reference.step()
        with torch.no_grad():
            W /= W.norm(dim=1, keepdim=True)
    assert rested.any(), "every latent fired all the time: the test shows less than it says"
    for name, parameter in training.sae.named_parameters():
        torch.testing.assert_close(parameter.double(), p[name], rtol=1e-3, atol=2e-5, msg=name)


def test_encoder_decay_takes_its_share_of_an_epoch_off_what_is_orthogonal_to_the_decoder() -> None:
    """64 of 1000 rows, decay 2 per epoch, full lr: a share of 0.128. The part along the decoder row stays, and Adam's
    step is the one without decay."""
    trials = [config("vanilla", warmup=0.0, decay=0.0, encoder_decay=decay) for decay in (0.0, 2.0)]
    plain, decayed = (Training.start(*trial, store()) for trial in trials)
    across = torch.randn(plain.sae.W_enc.shape, generator=torch.Generator().manual_seed(0))
    across -= (across * plain.sae.W_dec.t()).sum(0) * plain.sae.W_dec.t()
    with torch.no_grad():
        for training in (plain, decayed):
            training.sae.W_enc += across
    before, x = plain.sae.W_enc.detach().clone(), store().next_batch()
    plain.advance(x), decayed.advance(x)
    torch.testing.assert_close(decayed.sae.W_enc, before - 0.128 * across + (plain.sae.W_enc - before))
    for name, parameter in decayed.sae.named_parameters():
        if name != "W_enc":
            torch.testing.assert_close(parameter, dict(plain.sae.named_parameters())[name])


@pytest.mark.parametrize("kind", TYPES)
def test_the_default_lr_follows_batch_and_width(kind: str) -> None:
    """Four times the batch at as many steps: twice. Four times the latents, above 4 d_in: half of it, times 4 to the
    power of the type's width. At d_in 384, L0 32 is d_in / 12."""
    field = "k" if kind in K_SPARSE else "target_l0"
    narrow, wide = (SAE_TYPES[kind](example(kind, dict_size=n, **{field: 32}), 384) for n in (1536, 6144))
    powers = {"topk": 7 / 24, "batchtopk": 1 / 4, "matryoshka": 1 / 8, "hierarchical_topk": 1 / 4, "jumprelu": 5 / 24}
    powers |= {"vanilla": 1 / 12, "gated": 1 / 24, "p_anneal": 1 / 12, "omp": 1 / 8, "abs_topk": 1 / 4}
    one = narrow.default_lr(64, 64 * 400, 500)
    assert narrow.default_lr(256, 256 * 400, 500) / one == pytest.approx(2)
    assert one / wide.default_lr(64, 64 * 400, 500) == pytest.approx(4 ** powers[kind])


@pytest.mark.parametrize("kind", TYPES)
def test_the_lr_factor_multiplies_the_default_lr(kind: str) -> None:
    one, twice = (Training.start(*config(kind, {}, lr=None, lr_factor=f), store()).lr for f in (1.0, 2.0))
    assert twice == pytest.approx(2 * one)


@pytest.mark.parametrize(
    ("kind", "l0", "lr"),
    [
        ("topk", 8, 0.9 * 0.0176 / 6**0.5),
        ("topk", 32, 0.9 * 0.0176 / 6**0.5),
        ("topk", 128, 0.9 * 4 ** (-1 / 12) * 0.0176 / 6**0.5),
        ("batchtopk", 8, 0.8 * 0.0176 / 6**0.5),
        ("batchtopk", 128, 0.8 * 0.0176 / 6**0.5),
        ("jumprelu", 32, 1.1 * 0.0176 / 6**0.5),
        ("jumprelu", 128, 1.1 * 4 ** (-1 / 6) * 0.0176 / 6**0.5),
        ("matryoshka", 32, 0.85 * 0.0176 / 6**0.5),
        ("matryoshka", 128, 0.85 * 4**-0.125 * 0.0176 / 6**0.5),
        ("hierarchical_topk", 32, 0.95 * 0.0176 / 6**0.5),
        ("hierarchical_topk", 128, 0.95 * 4 ** (-1 / 6) * 0.0176 / 6**0.5),
        ("omp", 8, 1.3 * 0.0176 / 6**0.5),
        ("omp", 128, 1.3 * 4**-0.25 * 0.0176 / 6**0.5),
        ("abs_topk", 32, 0.7 * 0.0176 / 6**0.5),
        ("abs_topk", 128, 0.7 * 4 ** (5 / 24) * 0.0176 / 6**0.5),
        ("vanilla", 32, 0.75 * 0.23 / 48 * 48**0.25),
        ("vanilla", 128, 0.75 * 4**0.375 * 0.23 / 48 * 12**0.25),
        ("p_anneal", 8, 0.8 * 0.23 / 48 * 192**0.25),
        ("p_anneal", 128, 0.8 * 4**0.25 * 0.23 / 48 * 12**0.25),
        ("gated", 32, 0.5 * 0.23 / 48 * 48**0.25),
        ("gated", 128, 0.5 * 4**0.375 * 0.23 / 48 * 12**0.25),
    ],
)
def test_the_default_lr_by_hand(kind: str, l0: int, lr: float) -> None:
    """Batches of 256, 1,536 latents, d_in 384: 256 / 1536 = 1 / 6, 256 / (1536 * 384) = 1 / 48^2; d_in / 12 = 32."""
    field = "k" if kind in K_SPARSE else "target_l0"
    sae = SAE_TYPES[kind](example(kind, dict_size=1536, **{field: l0}), 384)
    assert sae.default_lr(256, 200 * 256, 18_000) == sae.default_lr(256, 400 * 256, 500) == pytest.approx(lr)
    assert sae.default_lr(1024, 400 * 1024, 144_000) == pytest.approx(lr)  # sqrt(4) / cbrt(8)


@pytest.mark.parametrize(
    ("kind", "power"),
    [
        ("topk", 1 / 8),
        ("batchtopk", 1 / 12),
        ("matryoshka", 1 / 12),
        ("jumprelu", 7 / 24),  # 5/24 + 1/12: its L0 lies a factor of 4 and more below 32
        ("abs_topk", 0),
        ("vanilla", 1 / 8),
        ("gated", 1 / 12),  # 1/6 - 1/12: its L0 lies a factor of 4 and more below 32
        ("p_anneal", 3 / 8),  # 5/24 + 1/6
    ],
)
def test_the_default_lr_falls_in_long_runs(kind: str, power: float) -> None:
    """6,400 steps are 16 times 400; a 48th of the latents fires."""
    sae = SAE_TYPES[kind](example(kind, dict_size=48, **{"k" if kind in K_SPARSE else "target_l0": 1}), D_IN)
    assert sae.default_lr(64, 64 * 400, 1000) / sae.default_lr(64, 64 * 6400, 1000) == pytest.approx(16**power)


@pytest.mark.parametrize(("kind", "factor"), [("topk", 0.5), ("jumprelu", 0.5), ("gated", 8**-0.5)])
def test_the_default_lr_falls_with_a_wide_input(kind: str, factor: float) -> None:
    """Eight times 384 numbers: half the rate, or 1 / sqrt(8) under an L1 penalty; 4 d_in latents or fewer."""
    sae = example(kind, dict_size=1536, **{"k" if kind in K_SPARSE else "target_l0": 32})
    narrow, wide = (SAE_TYPES[kind](sae, d_in).default_lr(64, 64 * 400, 500) for d_in in (384, 3072))
    assert wide / narrow == pytest.approx(factor)


def test_without_an_l0_to_aim_at_the_default_lr_is_that_of_a_twelfth_of_the_width() -> None:
    fixed, aimed = example("vanilla", l1_coeff=0.1), example("vanilla", target_l0=D_IN / 12)
    rates = {SAE_TYPES["vanilla"](sae, D_IN).default_lr(64, 6400, 1000) for sae in (fixed, aimed)}
    assert len(rates) == 1


def test_the_default_lr_counts_the_rows_that_a_run_sees() -> None:
    """16,000 of a million rows, or 200 times 1,000 rows: few in both cases; 144,000 of a million are eight times
    18,000. abs_topk's rate does not depend on the steps."""
    lr = {}
    for name, samples, rows in (("short", 16_000, 10**6), ("small", 200_000, 1000), ("long", 144_000, 10**6)):
        what = config("abs_topk", lr=None, samples=samples, batch_size=64)
        sae = Training.start(*what, store()).sae
        lr[name] = Training(what.train, sae, rows, store().train).lr
    assert lr["short"] == lr["small"] == pytest.approx(2 * lr["long"])


def test_a_type_of_ones_own_without_margins_is_not_left_uncontrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = store()
    training = Training.start(*config("vanilla", {"target_l0": 4.0}), rows)
    loss = training.sae.loss
    monkeypatch.setattr(training.sae, "loss", lambda x, moment: replace(loss(x, moment), margins=None))
    with pytest.raises(TypeError, match="VanillaSAE: target_l0 needs a loss with margins"):
        training.advance(rows.next_batch())


def test_a_training_step_writes_its_gradients_where_the_last_ones_were() -> None:
    rows = store()
    training = Training.start(*config("batchtopk", {"aux_coeff": 0.0}), rows)
    places = []
    for _ in range(3):
        training.advance(rows.next_batch())
        places.append([p.grad.data_ptr() for p in (training.sae.W_enc, training.sae.W_dec) if p.grad is not None])
    assert places[0] == places[1] == places[2]
    assert len(places[0]) == 2


def test_the_learning_rate_rises_then_falls_and_is_never_zero() -> None:
    rows = store(100)
    training = Training.start(*config(samples=2000, batch_size=100, warmup=0.2, decay=0.3, lr=1.0e-2), rows)
    rates = [m["train/lr"] / 1e-2 for m in run(training, rows)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 11, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_schedules_without_warm_up_or_decay() -> None:
    flat = TrainConfig(samples=10, warmup=0.0, decay=0.0)
    assert [schedule(s, s + 0.1, flat) for s in (0.0, 0.5, 0.9)] == [1, 1, 1]


def test_the_thresholds_of_jumprelu_have_a_learning_rate_of_their_own() -> None:
    rows = store()
    training = Training.start(*config("jumprelu", {"threshold_lr_factor": 7.0}), rows)
    training.advance(rows.next_batch())
    rates = {group["lr"] for group in training.optimizer.param_groups}
    assert max(rates) == pytest.approx(7 * min(rates))
    assert len(rates) == 2


@pytest.mark.parametrize(("samples", "batch_size"), [(1000, 64), (64, 64), (10, 64), (65, 64), (1, 1)])
def test_a_run_ends_at_exactly_its_budget(samples: int, batch_size: int) -> None:
    rows = store(batch_size)
    training = Training.start(*config(samples=samples, batch_size=batch_size, log_every=samples), rows)
    steps = list(train(training, rows))
    assert training.samples == steps[-1].samples == samples
    assert training.step == -(-samples // batch_size)


def test_records_come_at_multiples_of_log_every_and_at_the_end() -> None:
    rows = store(50)
    training = Training.start(*config(samples=1020, batch_size=50, log_every=200), rows)
    steps = list(train(training, rows))
    assert [s.samples for s in steps] == [200, 400, 600, 800, 1000, 1020]
    assert [s.step for s in steps] == [4, 8, 12, 16, 20, 21]


def test_defaults() -> None:
    assert [default_batch_size(n) for n in (1, 51_200, 307_200, 2_000_000, 10**9)] == [64, 256, 512, 1024, 4096]


PENALTY, K32 = VanillaConfig(dict_size=1536, target_l0=32), TopKConfig(dict_size=1536, k=32)


@pytest.mark.parametrize(
    ("sae", "samples", "batch_size", "num_train", "after"),
    [
        (PENALTY, 51_200, 256, 50_000, 50_000),  # nothing revives them: an epoch
        (PENALTY, 51_200, 2048, 10**6, 100_000),
        (PENALTY, 51_200, 2048, 3_000, 5 * 2048),  # a window of one step says nothing
        (TopKConfig(dict_size=1536, k=32, aux_coeff=0.0), 51_200, 256, 50_000, 50_000),
        (K32, 51_200, 256, 50_000, 3_200),  # a sixteenth of the run
        (K32, 12_800, 128, 50_000, 3_072),  # 64 firings, at 32 of 1,536 each: 64 * 48 examples
        (TopKConfig(dict_size=1536, k=8), 51_200, 256, 50_000, 12_288),
        (K32, 307_200, 512, 18_000, 18_000),  # an epoch is shorter than 19,200
        (K32, 10**7, 2048, 10**6, 100_000),
        (K32, 51_200, 2048, 50_000, 5 * 2048),
    ],
)
def test_the_default_dead_window(sae: SAEConfig, samples: int, batch_size: int, num_train: int, after: int) -> None:
    train = TrainConfig(samples=samples, batch_size=batch_size)
    assert default_dead_after(sae, 1536, train, num_train) == after


@pytest.mark.parametrize(("kind", "decay"), [("topk", 1.0), ("matryoshka", 2.0), ("vanilla", 1.0)])
def test_the_default_encoder_decay_takes_its_share_of_an_epoch(kind: str, decay: float) -> None:
    asked = config(kind, encoder_decay=None)
    assert Training.start(*asked, store()).decay == pytest.approx(decay * 64 / 1000)


# --- dead latents ----------------------------------------------------------------------------------------------------


def test_a_latent_is_dead_once_it_has_not_fired_for_dead_after_examples() -> None:
    rows = store(50)
    training = Training.start(*config(batch_size=50, dead_after=200, samples=10_000), rows)
    with torch.no_grad():
        training.sae.b_enc[:5] = -1e3
    dead = [m["train/dead_features"] for m in run(training, rows, until=250)]
    assert dead[:3] == [0, 0, 0]
    assert dead[3] >= 5
    assert (training.dead.since_fired[:5] == 250).all()


@pytest.mark.parametrize("kind", K_SPARSE)
def test_auxk_brings_dead_latents_back(kind: str) -> None:
    alive = {}
    for coeff in (0.0, 1 / 32):
        rows = store()
        sae = {"aux_coeff": coeff, "start": "random", "encoder_scale": 1.0}
        what = config(kind, sae, samples=10_000, lr=1e-2, decay=0.2, encoder_decay=0.0)
        training = Training.start(*what, rows)
        with torch.no_grad():
            if training.sae.config.signed:  # a large bias of either sign would fire
                training.sae.W_enc[:, :24] *= 1e-3
            else:
                training.sae.b_enc[:24] = -3.0
        run(training, rows)
        training.calibrate()
        alive[coeff] = 48 - evaluate(training.sae, rows).values["eval/dead_features"]
    assert alive[0.0] <= 24
    assert alive[1 / 32] >= (30 if example(kind).signed else 36)


def test_evaluating_changes_nothing_in_training() -> None:
    rows = store()
    training = Training.start(*config("batchtopk"), rows)
    run(training, rows, until=1000)
    training.calibrate()
    before, _ = training.state_dict()
    evaluate(training.sae, rows, ("knn_overlap_at_10",))
    after, _ = training.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- calibration rows ------------------------------------------------------------------------------------------------


def test_calibration_rows_are_a_fixed_small_part_of_the_training_rows() -> None:
    rows = store(n=3000)
    part = calibration_rows(rows.sample(16_384), 3000)
    assert len(part) == 512
    assert torch.equal(part, calibration_rows(rows.sample(16_384), 3000))
    assert len(calibration_rows(rows.train[:1000], 1000)) == 200
    assert len(calibration_rows(torch.ones(16_384, 2), 1_000_000)) == 4096
    assert len(calibration_rows(torch.ones(2, 2), 2)) == 1


def test_rows_set_aside_for_calibration_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = store(n=300)
    training = Training.start(*config(samples=3000), rows)
    held, trained = training.calibration, list[Tensor]()
    loss = training.sae.loss
    monkeypatch.setattr(training.sae, "loss", lambda x, moment: trained.append(x) or loss(x, moment))
    run(training, rows)
    seen = {tuple(row) for row in torch.cat(trained).tolist()}
    kept = {tuple(row) for row in held.tolist()}
    assert len(kept) == 60
    assert seen == {tuple(row) for row in rows.train.tolist()} - kept, "and every other row is"


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", TYPES)
def test_a_batch_with_nan_is_told_from_divergence(kind: str, bad: float) -> None:
    rows = store()
    training = Training.start(*config(kind, log_every=640), rows)
    run(training, rows, until=128)
    rows.train = rows.train.clone()
    rows.train[:, 3] = bad
    with pytest.raises(BadBatchError, match="at 128 samples holds NaN or inf") as caught:
        list(train(training, rows))
    assert caught.value.samples == 128
    assert classify(caught.value) == "user_error", "another attempt would end the same way"
    with pytest.raises(BadBatchError):
        training.state_dict()


def test_divergence_is_found_at_the_next_record_and_never_saved() -> None:
    rows = store()
    training = Training.start(*config(log_every=640), rows)
    run(training, rows, until=192)
    with torch.no_grad():
        training.sae.W_dec[0, 0] = torch.nan
    with pytest.raises(DivergedError, match="at 192 samples") as caught:
        list(train(training, rows))
    assert caught.value.samples == 192
    assert isinstance(caught.value, FloatingPointError)
    assert training.samples == 640
    with pytest.raises(DivergedError):
        training.state_dict()


@pytest.mark.parametrize(("kind", "fails"), [("topk", True), ("omp", True), ("vanilla", False)])
def test_a_training_that_falls_apart_is_a_failure_with_its_own_word(kind: str, fails: bool) -> None:
    """Rows in other directions come after two thirds: FVU is several times what it was. A penalty may raise it, too."""
    trial, rows = config(kind, samples=64 * 90, lr=1e-4), store()
    training = Training.start(*trial, rows)
    run(training, rows, until=64 * 60)
    rows.train = 8 * torch.randn(rows.train.shape, generator=torch.Generator().manual_seed(5))
    if not fails:
        assert len(list(train(training, rows))) > 0
        return
    with pytest.raises(CollapsedError, match=r"training FVU .* at its end, .* before; lr 0.0001 is too high") as caught:
        list(train(training, rows))
    assert training.samples == 64 * 90
    assert classify(caught.value) == "collapsed"


def test_a_short_training_is_not_said_to_fall_apart() -> None:
    trial, rows = config(samples=64 * 40), store()
    training = Training.start(*trial, rows)
    run(training, rows, until=64 * 20)
    rows.train = 8 * torch.randn(rows.train.shape)
    assert list(train(training, rows))[-1].samples == 64 * 40


def test_an_uncalibrated_batchtopk_cannot_be_evaluated() -> None:
    rows = store()
    with pytest.raises(NotCalibratedError):
        evaluate(Training.start(*config("batchtopk"), rows).sae, rows)


def test_batches_of_another_shape_or_type_or_none_are_refused() -> None:
    training = Training.start(*config(), store())
    with pytest.raises(ValueError, match=r"expected \(B, 12\)"):
        training.advance(torch.ones(4, 5))
    with pytest.raises(TypeError, match="int64"):
        training.advance(torch.ones(4, D_IN, dtype=torch.int64))
    with pytest.raises(ValueError, match="empty batch"):
        training.advance(torch.ones(0, D_IN))


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_an_evaluation_is_of_what_is_saved(kind: str, tmp_path: Any) -> None:
    rows = store()
    training = Training.start(*config(kind), rows)
    run(training, rows)
    training.calibrate()
    result = evaluate(training.sae, rows)
    again = evaluate(load_sae(save_sae(training.sae, tmp_path)), rows)
    assert result.values == again.values
    assert (len(result.per_text["squared_error"]), len(result.per_text["l0"]), len(result.firing)) == (400, 400, 48)
    assert float(result.per_text["squared_error"].double().mean()) / D_IN == pytest.approx(
        result.values["eval/mse"], rel=1e-6
    )
    assert int(result.firing.sum()) == int(result.per_text["l0"].sum())
    assert ("eval/threshold" in result.values) == (kind in ("batchtopk", "matryoshka"))


def test_preprocessing_does_not_change_the_space_of_the_metrics() -> None:
    """The same embeddings a thousand times larger: MSE a million times larger, FVU the same, for every step."""
    for preprocess in ("none", "center", "unit", "center_scale", "layer_norm"):
        values = []
        for factor in (1.0, 1000.0):
            rows = store()
            rows.train, rows.rows = factor * rows.train, factor * rows.rows
            training = Training.start(*config("topk", {"preprocess": preprocess}), rows)
            values.append(evaluate(training.sae, rows).values)
        assert values[1]["eval/mse"] == pytest.approx(1e6 * values[0]["eval/mse"], rel=1e-3), preprocess
        assert values[1]["eval/fvu"] == pytest.approx(values[0]["eval/fvu"], rel=1e-3), preprocess
