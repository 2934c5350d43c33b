"""The table of metrics says of each what the spec, the trial and the report need."""

from __future__ import annotations

from typing import get_args

from saebench.metrics import METRICS, extra_metrics, metric_of
from saebench.sweep_config import EvalConfig


def test_each_entry_of_eval_metrics_adds_metrics_and_no_metric_wants_another() -> None:
    (entries,) = {get_args(get_args(EvalConfig.model_fields["metrics"].annotation)[0])}
    assert all(extra_metrics(entry) for entry in entries)
    assert {metric.extra for metric in METRICS.values()} == {None, *entries}


def test_a_key_names_its_metric_whatever_part_it_was_measured_on() -> None:
    assert metric_of("test/fvu") is metric_of("eval/fvu") is metric_of("train_sample/fvu") is METRICS["fvu"]
    assert metric_of("train/fvu") is None, "that is the loss of a batch"
    assert metric_of("test/fvuu") is None


def test_a_ratio_has_a_direction_and_a_positive_scale() -> None:
    assert {name for name, metric in METRICS.items() if metric.comparison == "ratio"} == {"mse", "fvu"}
    assert all(metric.name == name and metric.meaning for name, metric in METRICS.items())
