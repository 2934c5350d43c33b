"""Plans: strata, points, trials, ids, marks, and when a verdict may come."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from saebench.config import BatchTopKConfig, TrialConfig, VanillaConfig
from saebench.errors import SpecError
from saebench.forecast import advice, describe_space, flops_per_example, work
from saebench.plan import Plan, cardinality, make_plan
from saebench.spec import Range, parse_spec

LR = {"low": 1e-4, "high": 1e-2, "log": True}
BASE: dict[str, Any] = {
    "name": "p",
    "data": {"model": "nowhere/none", "dataset": {"path": "a/b"}, "num_examples": 10_000},
    "sae": [
        {"type": "topk", "k": [16, 32], "expansion_factor": [2, 4]},
        {"type": "batchtopk", "k": 16, "expansion_factor": 4},
    ],
    "train": {"samples": 100_000, "batch_size": 1000, "lr": LR},
    "search": {"points": 3, "sampler": "random"},
}


def plan(d_in: int | None = 64, **changes: Any) -> Plan:
    return make_plan(parse_spec({**BASE, **changes}), d_in)


def ids(found: Plan) -> list[str]:
    return [stratum.id for stratum in found.strata]


# --- strata ----------------------------------------------------------------------------------------------------------


def test_type_sparsity_and_width_are_crossed_and_each_stratum_gets_the_same_points() -> None:
    found = plan(seeds=[0, 1])
    assert ids(found) == ["topk-k16-n128", "topk-k16-n256", "topk-k32-n128", "topk-k32-n256", "batchtopk-k16-n256"]
    assert {stratum.points for stratum in found.strata} == {3}
    assert (found.n_points, found.n_trials) == (15, 40)
    first = found.strata[0]
    assert first.axes == {"type": "topk", "k": 16, "dict_size": 128}
    assert first.fixed == {"samples": 100_000, "batch_size": 1000}
    assert first.space == {"lr": Range(1e-4, 1e-2, log=True)}


def test_without_the_width_of_the_embeddings_ids_name_the_factor() -> None:
    found = plan(d_in=None)
    assert found.d_in is None
    assert ids(found)[:2] == ["topk-k16-x2", "topk-k16-x4"]
    with pytest.raises(ValueError, match="width of the embeddings is not known"):
        found.trial(found.strata[0], {"lr": 1e-3}, 0, 0)


def test_the_width_of_an_encoder_on_this_machine_is_found(minilm_path: str) -> None:
    found = plan(d_in=None, data={**BASE["data"], "model": minilm_path})
    assert found.d_in == 384
    assert ids(found)[0] == "topk-k16-n768"


def test_plans_of_equal_specs_are_equal() -> None:
    assert plan() == plan()
    assert plan().point_id(plan().strata[0], {"lr": 1e-3}) == plan().point_id(plan().strata[0], {"lr": 1e-3})


def test_strata_can_be_fewer_axes_and_then_the_rest_is_searched() -> None:
    found = plan(search={**BASE["search"], "strata": ["type", "dict_size"]})
    assert ids(found) == ["topk-n128", "topk-n256", "batchtopk-n256"]
    assert found.strata[0].space == {"k": (16, 32), "lr": Range(1e-4, 1e-2, log=True)}
    assert found.strata[2].fixed["k"] == 16.0


def test_strata_can_have_further_axes_from_arms_and_training() -> None:
    sae = [
        {"type": "topk", "k": 8, "dict_size": 64, "aux_coeff": 0},
        {"type": "topk", "k": 8, "dict_size": 64},
        {"type": "vanilla", "target_l0": 8, "dict_size": 64},
    ]
    search = {**BASE["search"], "strata": ["type", "k", "target_l0", "dict_size", "aux_coeff", "batch_size"]}
    found = plan(sae=sae, search=search, train={**BASE["train"], "batch_size": [500, 1000]})
    assert ids(found) == [
        "topk-k8-n64-aux_coeff_0-batch_size_500",
        "topk-k8-n64-aux_coeff_0-batch_size_1000",
        "topk-k8-n64-aux_coeff_0.03125-batch_size_500",
        "topk-k8-n64-aux_coeff_0.03125-batch_size_1000",
        "vanilla-l0_8-n64-batch_size_500",
        "vanilla-l0_8-n64-batch_size_1000",
    ]


def test_two_widths_that_turn_out_equal_are_refused_once_the_embeddings_are_known() -> None:
    sae = [{"type": "topk", "k": 8, "dict_size": 128}, {"type": "topk", "k": 8, "expansion_factor": 2}]
    assert ids(plan(sae=sae, d_in=None)) == ["topk-k8-n128", "topk-k8-x2"]
    with pytest.raises(SpecError, match=r"^p: sae\[1\]: gives the stratum topk-k8-n128, as sae\[0\] does: write"):
        plan(sae=sae, d_in=64)


def test_a_k_that_the_embeddings_make_too_large_is_refused_by_the_plan() -> None:
    with pytest.raises(SpecError, match=r"^p: sae\[0\]\.k\[1\]: must be below dict_size, but 32 >= 20 \(expansion"):
        plan(d_in=10)


# --- points ----------------------------------------------------------------------------------------------------------


def test_the_grid_crosses_every_list_inside_each_stratum() -> None:
    train = {**BASE["train"], "lr": [1e-3, 1e-2], "batch_size": [500, 1000], "warmup": [0.1]}
    found = plan(train=train, search={"sampler": "grid"})
    first = found.strata[0]
    assert first.points == 4
    assert first.fixed == {"samples": 100_000, "warmup": 0.1}
    assert first.grid == (
        {"batch_size": 500, "lr": 1e-3},
        {"batch_size": 500, "lr": 1e-2},
        {"batch_size": 1000, "lr": 1e-3},
        {"batch_size": 1000, "lr": 1e-2},
    )
    assert found.n_points == 20


def test_a_grid_of_nothing_is_one_point() -> None:
    found = plan(train={"samples": 100_000}, search={"sampler": "grid"})
    assert found.strata[0].grid == ({},)
    assert found.n_points == 5


def test_there_are_never_more_points_than_different_ones() -> None:
    train = {**BASE["train"], "lr": [1e-3, 1e-2]}
    assert plan(train=train, search={"points": 8}).strata[0].points == 2
    assert plan(train={"samples": 100_000}, search={"points": 8}).strata[0].points == 1


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({}, 1),
        ({"a": (1, 2, 3), "b": (1, 2)}, 6),
        ({"a": Range(1, 4)}, 4),
        ({"a": Range(0.0, 1.0, step=0.1)}, 11),
        ({"a": Range(2, 8, step=3), "b": (1, 2)}, 6),
        ({"a": Range(0.0, 1.0), "b": (1, 2)}, float("inf")),
    ],
)
def test_cardinality_counts_different_points(space: dict[str, Any], size: float) -> None:
    assert cardinality(space) == size


def test_enqueued_points_go_to_the_strata_they_fit() -> None:
    search = {
        **BASE["search"],
        "enqueue": [
            {"lr": 1e-3},  # every stratum
            {"k": 32, "lr": 2e-3},  # those with k = 32
            {"type": "batchtopk", "lr": 3e-3},  # one type
            {"aux_coeff": 1 / 32, "lr": 5e-3},  # the default that they have
        ],
    }
    found = plan(search=search)
    by_id = {stratum.id: [point["lr"] for point in found.enqueued(stratum)] for stratum in found.strata}
    assert by_id["topk-k16-n128"] == [1e-3, 5e-3]
    assert by_id["topk-k32-n256"] == [1e-3, 2e-3, 5e-3]
    assert by_id["batchtopk-k16-n256"] == [1e-3, 3e-3, 5e-3]


def test_an_enqueued_value_is_the_one_that_the_space_has() -> None:
    sae = [{"type": "batchtopk", "k": [2.5, 16], "dict_size": 64}, {"type": "topk", "k": [8, 16], "dict_size": 64}]
    search = {"points": 3, "strata": ["type"], "enqueue": [{"k": 16}, {"k": 2.5}, {"batch_size": 600}]}
    found = plan(sae=sae, search=search, train={**BASE["train"], "batch_size": {"low": 500, "high": 700}})
    batch, top = (found.enqueued(stratum) for stratum in found.strata)
    assert [list(map(repr, point.values())) for point in batch] == [["16.0"], ["2.5"], ["600"]]
    assert [list(map(repr, point.values())) for point in top] == [["16"], ["600"]]


def test_point_ids_tell_points_apart_and_are_the_same_for_equal_numbers() -> None:
    found = plan()
    first, second = found.strata[:2]
    identity = found.point_id(first, {"lr": 1e-3})
    assert len(identity) == 10
    assert identity == found.point_id(first, {"lr": 0.001})
    assert identity != found.point_id(first, {"lr": 0.002})
    assert identity != found.point_id(second, {"lr": 1e-3})
    assert found.point_id(first, {"a": 1, "b": 2}) == found.point_id(first, {"b": 2.0, "a": 1.0})
    shorter = plan(train={**BASE["train"], "samples": 50_000})
    assert identity != shorter.point_id(shorter.strata[0], {"lr": 1e-3})


# --- trials ----------------------------------------------------------------------------------------------------------


def test_a_trial_is_complete_and_survives_json() -> None:
    found = plan(eval={"metrics": ["knn_overlap_at_10"]})
    trial = found.trial(found.strata[4], {"lr": 1e-3}, seed=7, number=12)
    assert trial.sae == BatchTopKConfig(k=16.0, dict_size=256)
    assert (trial.sweep, trial.number, trial.stratum, trial.seed) == ("p", 12, "batchtopk-k16-n256", 7)
    assert trial.point == found.point_id(found.strata[4], {"lr": 1e-3})
    assert (trial.train.lr, trial.train.samples, trial.train.eval_every) == (1e-3, 100_000, 5_000)
    assert trial.extra_metrics == ("knn_overlap_at_10",)
    assert TrialConfig.model_validate_json(trial.model_dump_json()) == trial


def test_extra_metrics_are_left_out_where_the_spec_says_so() -> None:
    found = plan(eval={"extra": "none", "metrics": ["knn_overlap_at_10"]})
    assert found.trial(found.strata[0], {"lr": 1e-3}, 0, 0).extra_metrics == ()


def test_a_searched_width_ends_up_in_dict_size() -> None:
    sae = [{"type": "vanilla", "l1_coeff": 0.1, "expansion_factor": {"low": 2, "high": 8}}]
    found = plan(sae=sae, search={"points": 3, "strata": ["type"]})
    trial = found.trial(found.strata[0], {"expansion_factor": 2.51, "lr": 1e-3}, 0, 0)
    assert trial.sae == VanillaConfig(l1_coeff=0.1, dict_size=161)  # 2.51 * 64 = 160.64


def test_a_point_with_k_as_large_as_the_code_is_refused() -> None:
    found = plan()
    with pytest.raises(SpecError, match="topk-k16-n128: k: 128: must be below dict_size, 128"):
        found.trial(found.strata[0], {"k": 128}, 0, 0)


def test_a_point_outside_a_field_is_refused_in_one_line() -> None:
    found = plan()
    with pytest.raises(SpecError, match=r"^topk-k16-n128: must be above 0$"):
        found.trial(found.strata[0], {"lr": -1.0}, 0, 0)


# --- marks and verdicts ----------------------------------------------------------------------------------------------


def test_marks_are_twenty_by_default_and_end_with_the_run() -> None:
    marks = plan().marks()
    assert marks == tuple(range(5_000, 100_001, 5_000))
    uneven = plan(train={**BASE["train"], "eval_every": 30_000})
    assert uneven.marks() == (30_000, 60_000, 90_000, 100_000)


def test_two_marks_never_lie_in_one_batch() -> None:
    """A twentieth of 9,000 is 450, less than the largest batch."""
    found = plan(train={"samples": 9_000, "batch_size": [500, 1000]})
    assert found.marks() == tuple(range(1_000, 9_001, 1_000))


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"prune": {}}, 20_000),  # a fifth of the budget, where nothing is said
        ({"prune": {}, "sae": [{"type": "jumprelu", "target_l0": 9, "dict_size": 99}]}, 20_000),
        ({"prune": {}, "sae": [{"type": "vanilla", "l1_coeff": 1, "dict_size": 99, "sparsity_warmup": 0.3}]}, 30_000),
        ({"prune": {"warmup": 50_000}}, 50_000),
        ({}, 10_000),  # not at 1: the first dead window is one epoch, 0.9 * 10,000, and lr warms up over 10,000
        ({"train": {**BASE["train"], "warmup": 0.31}}, 35_000),
        ({"train": {**BASE["train"], "warmup": [0.1, 0.31]}}, 35_000),  # the same for every trial of a stratum
        ({"train": {**BASE["train"], "dead_after": 41_000}}, 45_000),
        ({"train": {**BASE["train"], "dead_after": 100, "warmup": 0.05}}, 5_000),
        ({"sae": [{"type": "vanilla", "l1_coeff": 1, "dict_size": 99, "sparsity_warmup": 0.52}]}, 55_000),
        ({"sae": [{"type": "jumprelu", "target_l0": 9, "dict_size": 99}]}, 10_000),  # the ramp's default is a tenth
        ({"train": {**BASE["train"], "dead_after": 200_000}}, 100_000),  # never
    ],
)
def test_no_verdict_before_warm_up_ramp_and_first_dead_window_are_over(changes: dict[str, Any], first: int) -> None:
    found = plan(**{"prune": {"warmup": 1}, **changes})
    assert found.prune_from(found.strata[0]) == first


def test_rungs_are_marks_at_powers_of_the_reduction_factor() -> None:
    found = plan(prune={"pruner": "asha", "reduction_factor": 2, "warmup": 1})
    assert found.rungs(found.strata[0]) == (10_000, 20_000, 40_000, 80_000)
    coarse = plan(train={**BASE["train"], "eval_every": 30_000}, prune={"pruner": "asha"})
    assert coarse.rungs(coarse.strata[0]) == (30_000, 90_000)
    never = plan(train={**BASE["train"], "dead_after": 200_000})
    assert never.rungs(never.strata[0]) == ()


# --- what it costs, and what is odd ----------------------------------------------------------------------------------


def test_work_counts_points_refinements_and_the_seeds_that_compare() -> None:
    """3 points, 4 refinements, 1 seed that measures the choice."""
    found = plan(sae=[{"type": "vanilla", "l1_coeff": 1, "dict_size": 128}], seeds=[0, 1])
    cost = work(found)
    assert cost.trials == 8
    assert cost.train_examples == 800_000
    assert cost.eval_examples == 8 * (20 * 333 + 667), "a tenth of 10,000 texts: a third validation, two thirds test"
    assert cost.train_flops == 800_000 * 10 * 64 * 128
    assert cost.texts == 10_000
    assert cost.embedding_bytes == 10_000 * 64 * 4
    assert work(plan(d_in=None)).train_flops is None


@pytest.mark.parametrize(("log_sae", "copies"), [("all", 8), ("best", 1), ("none", 0)])
def test_work_says_what_the_saes_take_on_the_disk_and_in_mlflow(log_sae: str, copies: int) -> None:
    arm = {"type": "vanilla", "l1_coeff": 1, "dict_size": 128}
    cost = work(plan(sae=[arm], seeds=[0, 1], tracking={"log_sae": log_sae}))
    one = 2 * 64 * 128 * 4
    assert (cost.sae_bytes, cost.copied_bytes) == (8 * one, copies * one)
    assert work(plan(d_in=None)).sae_bytes is None


def test_a_k_sparse_step_costs_one_dense_product_and_four_sparse_ones() -> None:
    found = plan()
    assert flops_per_example(found.strata[0], 64) == 2 * 64 * 128 + 8 * 64 * 16


def notes(**changes: Any) -> str:
    return "\n".join(advice(plan(**{"seeds": [0, 1], **changes})))


@pytest.mark.parametrize(
    ("arm", "warned"),
    [
        ({"type": "omp", "k": 4}, True),
        ({"type": "topk", "k": 4, "refine": 2}, True),
        ({"type": "batchtopk", "k": 4, "refine": [0, 2]}, True),
        ({"type": "topk", "k": 4, "refine": 0}, False),
        ({"type": "topk", "k": 4}, False),
    ],
    ids=str,
)
def test_a_missing_numba_is_told_where_its_kernels_are_used(
    arm: dict[str, Any], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    said = notes(sae=[{**arm, "dict_size": 64}])
    assert ("omp and refine run in torch, six times as long: pip install numba" in said) == warned
    monkeypatch.undo()
    assert notes(sae=[{**arm, "dict_size": 64}]) == ""


def test_nothing_is_odd_about_a_plain_plan() -> None:
    assert notes() == ""


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"search": {"points": 8, "sampler": "tpe"}},
            "tpe learns after the first 10 points of a stratum and there are 8: it draws what qmc draws",
        ),
        ({"search": {"points": 2}}, "median never acts in strata of 2 points: it needs 3 (prune.startup_trials: 2)"),
        ({"search": {"points": 1}, "prune": {"pruner": "asha"}}, "asha never acts in strata of 1 point"),
        ({"prune": {"warmup": 1}}, "first verdict at 10,000 examples, not at prune.warmup"),
        ({"train": {**BASE["train"], "dead_after": 99_999}}, "median never acts: warm-up, ramps"),
        ({"prune": {"upper": 1}}, "prune.upper has no effect: it belongs to threshold, not to median"),
        ({"search": {"strata": ["type"], "points": 3}}, "topk: k differs inside a stratum, so median compares trials"),
        ({"search": {}}, "search.points is not given: 1 point a stratum, though lr can be searched"),
        ({"train": {"samples": 100_000}}, "nothing is searched, so a stratum has 1 point, not search.points: 3"),
        (
            {"train": {**BASE["train"], "lr": [1e-3, 1e-2]}},
            "only 2 different points in a stratum, not 3; grid tries each once",
        ),
        ({"search": {"points": 6, "sampler": "cmaes"}}, "cmaes learns from generations of points, and 6 points are"),
        ({"seeds": [0]}, "one seed: differences between strata will have no interval over seeds"),
    ],
)
def test_the_plan_says_what_is_odd(changes: dict[str, Any], note: str) -> None:
    assert note in notes(**changes)


def test_tpe_with_enough_points_and_pareto_with_moving_sparsity_are_not_odd() -> None:
    assert notes(search={"points": 11, "sampler": "tpe"}) == ""
    assert (
        notes(search={"points": 3, "sampler": "qmc", "strata": ["type", "dict_size"]}, prune={"pruner": "pareto"}) == ""
    )


def test_a_space_is_described_in_short() -> None:
    found = plan(train={**BASE["train"], "batch_size": [500, 1000], "beta1": {"low": 0, "high": 0.5, "step": 0.25}})
    assert describe_space(found.strata[0]) == "batch_size 500|1000, lr 0.0001..0.01 log, beta1 0..0.5 step 0.25"


def test_a_control_is_a_stratum_of_its_own_with_its_name_in_the_id() -> None:
    arm = {"type": "topk", "k": [8, 16], "dict_size": 64}
    found = plan(sae=[arm, arm | {"control": "soft_decoder"}])
    assert ids(found) == ["topk-k8-n64", "topk-k16-n64", "topk-k8-n64-soft_decoder", "topk-k16-n64-soft_decoder"]
    stratum = found.strata[2]
    assert found.trial(stratum, dict.fromkeys(stratum.space, 1e-3), 0, 0).sae.control == "soft_decoder"
