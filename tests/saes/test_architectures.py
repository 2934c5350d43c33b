"""What holds for every architecture: the formulas, the constraint, codes of one's own, the errors."""

from __future__ import annotations

from typing import Any

import formulas
import pytest
import torch
from sae_examples import K_SPARSE, PENALISED, TYPES
from torch import Tensor

from saebench.config import SAE_CONFIGS
from saebench.saes import SAE, SAE_TYPES, Dead, Moment, NotCalibratedError, make_sae, sparse
from saebench.saes.gated import GatedSAE


def calibrated(kind: str, **fields: Any) -> Any:
    sae = formulas.small(kind, **fields)
    sae.calibrate(formulas.cloud(256))
    return sae


def test_every_config_has_its_class() -> None:
    assert SAE_TYPES.keys() == SAE_CONFIGS.keys()


@pytest.mark.parametrize("dead", [None, [0, 3, 5, 7, 11, 20]], ids=["alive", "dead"])
@pytest.mark.parametrize("kind", TYPES)
def test_loss_and_every_gradient_equal_the_dense_float64_formula(kind: str, dead: list[int] | None) -> None:
    sae, x = formulas.small(kind), formulas.cloud(32, seed=7)
    dead_latents = None if dead is None else Dead(torch.tensor(dead), torch.ones(len(dead), dtype=torch.bool))
    sae.loss(x, Moment(coeff=0.1, dead=dead_latents)).total.backward()
    total = sae.loss(x, Moment(coeff=0.1, dead=dead_latents)).total.detach()
    expected = assert_equals_the_formula(sae, x, dead if kind in K_SPARSE else None)
    assert float(total) == pytest.approx(float(expected.detach()), rel=1e-5)


def assert_equals_the_formula(sae: SAE, x: Tensor, dead: list[int] | None) -> Tensor:
    """Every gradient of `sae`, already computed at coeff 0.1, against float64; returns the loss in float64."""
    params = formulas.double(sae)
    expected = formulas.loss(sae, params, x, 0.1, dead)
    expected.backward()
    for name, parameter in sae.named_parameters():
        reference = params[name].grad
        assert reference is not None
        ours = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        scale = float(reference.abs().max())
        assert scale > 0, f"{name} has no gradient: the test shows nothing"
        torch.testing.assert_close(ours.double(), reference, rtol=1e-3, atol=2e-5 * scale, msg=name)
    return expected


@pytest.mark.parametrize("kind", PENALISED)
def test_loss_and_every_gradient_equal_the_formula_where_few_latents_fire(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few enough that training goes through pairs instead of a dense (B, dict_size)."""
    narrow = {"bandwidth": 0.2} if kind == "jumprelu" else {}
    sae, x = formulas.small(kind, dict_size=600, **narrow), formulas.cloud(32)
    with torch.no_grad():
        pre = sae.pre_activations(sae.preprocessing(x)[0]).flatten().sort().values
        sae.b_enc.sub_(pre[int(0.985 * len(pre)) :][:2].mean())
        if kind == "jumprelu":
            sae.threshold.fill_(0.01).add_(0.05 * torch.rand(600, generator=torch.Generator().manual_seed(0)))
    seen, original = [], sparse.encode_above
    monkeypatch.setattr(sparse, "encode_above", lambda *a: seen.append(original(*a)) or seen[-1])
    sae.loss(x, Moment(coeff=0.1)).total.backward()
    assert isinstance(seen[0], sparse.SparseCodes)
    assert_equals_the_formula(sae, x, None)


@pytest.mark.parametrize("kind", TYPES)
def test_what_a_loss_reports_is_measured_on_the_training_codes(kind: str) -> None:
    sae, x = formulas.small(kind), formulas.cloud(32, seed=7)
    result = sae.loss(x, Moment())
    z = formulas.model_space(sae, x)
    codes = formulas.codes(sae, formulas.double(sae), z).detach()
    assert float(result.l0) == pytest.approx(float((codes != 0).sum(1).double().mean()))
    assert torch.equal(result.fired, (codes != 0).any(0))
    z_hat = codes @ sae.W_dec.detach().double() + sae.b_dec.detach().double()
    fvu = float((z - z_hat).square().sum(1).mean() / sae.variance)
    assert float(result.fvu) == pytest.approx(fvu, rel=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_forward_is_decode_of_encode(kind: str) -> None:
    sae, x = calibrated(kind), formulas.cloud(20, seed=3)
    torch.testing.assert_close(sae(x), sae.decode(sae.encode(x)))
    x_hat, latents = sae.reconstruct(x)
    assert torch.equal(latents, sae.encode(x))
    assert torch.equal(x_hat, sae(x))


@pytest.mark.parametrize("kind", TYPES)
def test_a_code_does_not_depend_on_batch_mates(kind: str) -> None:
    """In training BatchTopK's does; a sentence looked up alone must get the code it has in a corpus."""
    sae, x = calibrated(kind), formulas.cloud(20, seed=3)
    together = sae.encode(x)
    torch.testing.assert_close(torch.cat([sae.encode(row[None]) for row in x]), together)
    torch.testing.assert_close(sae.encode(torch.cat([x, 100 * x]))[:20], together)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python:RuntimeWarning")
def test_torch_compile_sees_no_operator_that_inductor_cannot_lower() -> None:
    """oneDNN's linear is one: inductor takes it with constant weights only."""
    sae, x, seen = calibrated("topk"), formulas.cloud(20, seed=3), []

    def backend(graph: torch.fx.GraphModule, _example: list[Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(sae, backend=backend)(x), sae(x))
    assert any("addmm" in name for name in seen)
    assert not any("mkldnn" in name for name in seen)


@pytest.mark.parametrize("kind", TYPES)
def test_latents_are_never_negative_but_those_of_signed_types(kind: str) -> None:
    negative = (calibrated(kind).encode(formulas.cloud(200, seed=5)) < 0).any()
    assert bool(negative) == SAE_CONFIGS[kind].signed


@pytest.mark.parametrize("kind", TYPES)
def test_decoder_rows_have_length_one_after_a_step_and_the_step_turned_them(kind: str) -> None:
    sae = formulas.small(kind)
    before = sae.W_dec.detach().clone()
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    sae.loss(formulas.cloud(32), Moment(coeff=0.1)).total.backward()
    sae.project_gradient()
    assert sae.W_dec.grad is not None
    along = (sae.W_dec.grad * sae.W_dec.detach()).sum(1).abs().max()
    assert float(along) < 1e-6 * float(sae.W_dec.grad.norm()) + 1e-9
    optimizer.step()
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() > 1e-5, "the step stretched nothing: the test shows nothing"
    sae.constrain()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24))
    assert not torch.equal(sae.W_dec, before)


@pytest.mark.parametrize("dict_size", [16, 64, 1024])
def test_the_encoder_starts_as_the_transposed_decoder_whatever_dict_size(dict_size: int) -> None:
    """An encoder scaled by the fan-in of its transpose shrinks as the dictionary grows."""
    for scale in (1.0, 0.1):
        sae = formulas.small("topk", dict_size=dict_size, stir=False, encoder_scale=scale)
        assert torch.equal(sae.W_enc, sae.W_dec.t() * scale)
        torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.full((dict_size,), scale))


def test_the_seed_fixes_the_start_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (formulas.small("topk", seed=s, stir=False).W_dec for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_b_dec_starts_at_the_geometric_median_and_the_variance_is_that_of_the_sample() -> None:
    sae = make_sae(SAE_CONFIGS["topk"](dict_size=16, k=2, preprocess="none"), 8, formulas.cloud(500), 0)  # type: ignore[arg-type]
    x = formulas.cloud(500).double()
    spot = sae.b_dec.detach().double()
    assert all((x - spot).norm(dim=1).sum() <= (x - spot - nudge).norm(dim=1).sum() for nudge in 0.05 * torch.eye(8))
    assert float(sae.variance) == pytest.approx(float((x - x.mean(0)).square().sum(1).mean()), rel=1e-6)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_an_uncalibrated_threshold_is_an_error_and_never_a_dense_code(kind: str) -> None:
    """Nor is one below 0, as other packages mark it (from there it would let nearly every latent through)."""
    sae: Any = formulas.small(kind)
    for never in (torch.nan, -1.0, -torch.inf):
        sae.threshold.fill_(never)
        with pytest.raises(NotCalibratedError, match="not calibrated"):
            sae.encode(formulas.cloud(4))


@pytest.mark.parametrize("kind", TYPES)
def test_bad_input_is_named(kind: str) -> None:
    sae = calibrated(kind)
    with pytest.raises(TypeError, match=r"int64: expected floating point"):
        sae.encode(torch.ones(2, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="embeddings of type ndarray: expected a tensor"):
        sae.encode(formulas.cloud(2).numpy())
    with pytest.raises(TypeError, match=r"latents of type torch\.int64: expected floating point"):
        sae.decode(torch.ones(2, 24, dtype=torch.int64))
    for shape in [(2, 7), (8,), (2, 3, 8)]:
        with pytest.raises(ValueError, match=r"expected \(B, 8\)"):
            sae.encode(torch.ones(shape))
        with pytest.raises(ValueError, match=r"expected \(B, 8\)"):
            sae.loss(torch.ones(shape), Moment())
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = formulas.cloud(4)
        x[2, 1] = bad
        with pytest.raises(ValueError, match="row 2 of the batch holds NaN or inf"):
            sae.encode(x)
    with pytest.raises(ValueError, match="empty batch"):
        sae.loss(torch.empty(0, 8), Moment())
    with pytest.raises(ValueError, match=r"expected \(B, 24\)"):
        sae.decode(torch.ones(2, 8))


@pytest.mark.parametrize("kind", TYPES)
def test_an_empty_batch_has_empty_codes_and_a_batch_of_one_trains(kind: str) -> None:
    sae = calibrated(kind)
    assert sae.encode(torch.empty(0, 8)).shape == (0, 24)
    result = sae.loss(formulas.cloud(1, seed=9), Moment(coeff=0.1, dead=Dead(torch.tensor([1]), torch.tensor([True]))))
    result.total.backward()
    assert result.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_taken_as_float32(kind: str, dtype: torch.dtype) -> None:
    sae, x = calibrated(kind), formulas.cloud(4).to(dtype)
    assert torch.equal(sae.encode(x), sae.encode(x.float()))
    latents = sae.encode(x).to(dtype)
    assert torch.equal(sae.decode(latents), sae.decode(latents.float()))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_refused(kind: str, dtype: torch.dtype) -> None:
    sae = calibrated(kind).to(dtype)
    with pytest.raises(TypeError, match=rf"weights of type {dtype}: an SAE computes in float32"):
        sae(formulas.cloud(4))


@pytest.mark.parametrize("kind", TYPES)
def test_nan_in_a_training_batch_reaches_the_loss(kind: str) -> None:
    """A step does not stop to look at its batch; the loss must not swallow what the trainer checks for."""
    x = formulas.cloud(16)
    x[3, 2] = torch.nan
    assert not formulas.small(kind).loss(x, Moment(coeff=0.1)).total.isfinite()


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("topk", {"k": 25}, "k 25 must not exceed dict_size 24"),
        ("topk", {"k": 2, "k_start": 25}, "k_start 25 must not exceed dict_size 24"),
        ("topk", {"k": 4, "k_start": 4}, "k_start 4 must exceed k 4, to which it falls"),
        ("topk", {"k_start": 8, "refine": 1, "refine_training": True}, "give refine_training or k_start, not both"),
        ("hierarchical_topk", {"k_start": 8}, "k_start: hierarchical_topk trains every k up to 4 at once"),
        ("hierarchical_topk", {"multi_coeff": 0.1}, "multi_coeff: hierarchical_topk trains every k up to 4 at once"),
        ("topk", {"ortho_coeff": 0.1, "control": "frozen_decoder"}, "ortho_coeff: a frozen decoder does not move"),
        ("batchtopk", {"k": 24.5}, "k 24.5 must not exceed dict_size 24"),
        ("omp", {"k": 25}, "k 25 must not exceed dict_size 24"),
        ("omp", {"target_l0": 24.0}, "target_l0 must be below dict_size 24"),
        ("matryoshka", {"groups": (0.99, 0.01)}, "leave a level of 24 latents empty"),
        ("vanilla", {"l1_coeff": None, "target_l0": 24.0}, "target_l0 must be below dict_size 24"),
    ],
)
def test_impossible_values_are_refused(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formulas.small(kind, **fields)


def test_training_rows_without_variance_are_refused() -> None:
    for rows in (torch.ones(10, 8), torch.ones(1, 8)):
        with pytest.raises(ValueError, match=r"all the same|at least 2"):
            make_sae(SAE_CONFIGS["topk"](dict_size=16, k=2), 8, rows, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TYPES)
def test_bfloat16_changes_the_encoders_product_and_nothing_else(kind: str) -> None:
    sae, x = formulas.small(kind), formulas.cloud(64)
    exact = sae.loss(x, Moment(coeff=0.1)).total.detach()
    rough = sae.loss(x, Moment(coeff=0.1, precision="bfloat16")).total
    assert exact.dtype == rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough.detach(), exact, rtol=0.05, atol=0)
    rough.backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in sae.parameters())


@pytest.mark.parametrize("kind", PENALISED)
def test_calibration_to_a_target_l0_hits_it_on_the_rows(kind: str) -> None:
    config = {"l0_coeff" if kind == "jumprelu" else "l1_coeff": None, "target_l0": 3.0}
    sae, rows = formulas.small(kind, **config), formulas.cloud(200, seed=4)
    assert float((sae.encode(rows) != 0).sum(1).double().mean()) != pytest.approx(3.0, abs=0.1)
    sae.calibrate(rows)
    assert float((sae.encode(rows) != 0).sum(1).double().mean()) == pytest.approx(3.0, abs=0.011)
    assert (sae.encode(rows) >= 0).all()


@pytest.mark.parametrize("kind", PENALISED)
def test_a_target_beyond_reach_leaves_all_firing_that_can(kind: str) -> None:
    """On 20 rows, 23.99 of 24 latents are all 480 pairs; a magnitude path that is shut keeps many of gated's out."""
    config = {"l0_coeff" if kind == "jumprelu" else "l1_coeff": None, "target_l0": 23.99}
    sae, rows = formulas.small(kind, **config), formulas.cloud(20, seed=4)
    sae.calibrate(rows)
    assert sae.offset.isfinite()
    assert sae.encode(rows).isfinite().all()
    pre = torch.cat(list(sae.pre_activations_of(rows)))
    can = sae.magnitude(pre) > 0 if isinstance(sae, GatedSAE) else pre > (1e-6 if kind == "jumprelu" else -torch.inf)
    assert torch.equal(sae.encode(rows) > 0, can)


@pytest.mark.parametrize("kind", PENALISED)
def test_a_fixed_coefficient_leaves_inference_as_trained(kind: str) -> None:
    coefficient = {"l0_coeff": 0.01} if kind == "jumprelu" else {"l1_coeff": 0.1}
    sae, rows = formulas.small(kind, **coefficient), formulas.cloud(50)
    before = sae.encode(rows)
    sae.calibrate(rows)
    assert torch.equal(sae.encode(rows), before)
    assert (before != 0).double().sum(1).mean() == pytest.approx(float(sae.loss(rows, Moment()).l0))


@pytest.mark.parametrize(
    ("kind", "fields", "shown"), [("topk", {"k": 3}, "k=3"), ("gated", {"l1_coeff": 0.5}, "l1_coeff=0.5")]
)
def test_printing_shows_the_widths_and_what_sets_the_sparsity(kind: str, fields: dict[str, float], shown: str) -> None:
    sae = make_sae(SAE_CONFIGS[kind].model_validate({"dict_size": 24, **fields}), 8, formulas.cloud(64), 0)
    assert f"  d_in=8, dict_size=24, {shown}\n" in repr(sae)


@pytest.mark.parametrize("kind", TYPES)
def test_a_start_from_data_with_a_small_encoder(kind: str) -> None:
    sparsity = {"k": 4} if kind in K_SPARSE else {"target_l0": 4.0}
    sample = formulas.cloud(200, seed=5)
    config = SAE_CONFIGS[kind](dict_size=32, start="data", encoder_scale=0.1, **sparsity)
    sae = make_sae(config, sample.shape[1], sample, seed=0)
    if kind != "omp":  # it has no encoder
        torch.testing.assert_close(sae.W_enc, 0.1 * sae.W_dec.t())
    rows = torch.nn.functional.normalize(sae.preprocessing(sample)[0] - sae.b_dec, dim=1)
    assert ((rows @ sae.W_dec.t()).max(0).values > 1 - 1e-5).all(), "every decoder row points at a training row"
