"""Signed latents: each end is shown with its own words and texts, and other seeds find it with whatever sign."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from latents.planted import D_IN, DIRECTIONS, NAMES, TOPICS, write_trial

from saebench.cli import cli
from saebench.config import AbsTopKConfig, TrialConfig
from saebench.latents import Latents, analyse
from saebench.latents.codes import Codes
from saebench.latents.ends import both_ways, unfolded
from saebench.latents.explained import explain_columns
from saebench.latents.export import write_json
from saebench.latents.page import page
from saebench.latents.seeds import judged_rows, judged_with_seeds, label_rows
from saebench.report.matching import match
from saebench.saes.abs_topk import AbsTopKSAE

WATER, DOGS = NAMES.index("water"), NAMES.index("dogs")


def signed_sae(sign: float) -> AbsTopKSAE:
    """Latent 0 (of the other seed: 3, written the other way round) is water where it is positive, dogs where it is
    negative."""
    sae = AbsTopKSAE(AbsTopKConfig(k=1, dict_size=6, preprocess="none"), D_IN)
    rows = np.random.default_rng(7).standard_normal((6, D_IN)).astype(np.float32)
    rows -= rows @ DIRECTIONS.T @ DIRECTIONS
    rows[0 if sign > 0 else 3] = 3 * sign * (DIRECTIONS[WATER] - DIRECTIONS[DOGS])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor(rows))
        sae.W_enc.copy_(torch.tensor(rows).t())
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


@pytest.fixture
def found(config: TrialConfig, tmp_path: Path) -> Latents:
    config = config.model_copy(update={"sae": AbsTopKConfig(k=1, dict_size=6, preprocess="none")})
    first = write_trial(tmp_path / "runs", config, signed_sae(1.0))
    write_trial(tmp_path / "runs", config.model_copy(update={"seed": 1, "number": 1}), signed_sae(-1.0))
    return analyse(first.root)


def test_codes_unfold_to_one_column_per_end() -> None:
    codes = unfolded(Codes.of(np.array([[1.0, -2.0, 0.0], [-3.0, 0.0, 4.0]])))
    assert codes.dense().tolist() == [[1, 0, 0, 0, 2, 0], [0, 0, 4, 3, 0, 0]]
    assert [codes.row(i)[0].tolist() for i in (0, 1)] == [[0, 4], [2, 3]]
    assert both_ways(np.ones((1, 2), np.float32)).tolist() == [[1, 1], [-1, -1]]


def test_both_ends_of_a_latent_are_shown_each_with_its_own_words(found: Latents) -> None:
    ends = {row["end"]: row for row in found.rows() if row["latent"] == 0}
    assert set(ends["+"]["keywords"].split(", ")[:4]) <= set(TOPICS["water"])
    assert set(ends["-"]["keywords"].split(", ")[:4]) <= set(TOPICS["dogs"])
    assert ends["+"]["max"] > 0 > ends["-"]["max"]
    assert ends["-"]["mean"] < 0
    assert found.summary()["live"] <= 6
    assert all(row["found_by_other_seeds"] == 1.0 for row in ends.values()), "the other seed has it the other way round"


def test_every_output_has_both_ends(found: Latents, tmp_path: Path) -> None:
    out = StringIO()
    write_json(found, out)
    written = {latent["end"]: latent for latent in json.loads(out.getvalue())["latents"] if latent["latent"] == 0}
    assert written["+"]["top"][0]["activation"] > 0 > written["-"]["top"][0]["activation"]
    html = page(found, [("hound puppy kennel", {0: -0.5})])
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    assert data["ends"] == 6
    assert {0, 6} <= {latent["n"] for latent in data["latents"]}
    assert data["fired"][0]["on"] == {"6": -0.5}
    shown = CliRunner().invoke(cli, ["latents", "demo/0", "--runs-dir", str(tmp_path / "runs")]).stdout
    assert "0+" in shown
    assert "0-" in shown
    coded = (
        CliRunner()
        .invoke(cli, ["latents", "demo/0", "--runs-dir", str(tmp_path / "runs"), "--text", "hound puppy kennel leash"])
        .stdout
    )
    assert "0-" in coded
    assert "hound" in coded


def test_each_end_is_scored_for_itself(found: Latents) -> None:
    """Ten words of one topic are coherent; ten words of two topics, which the latent has over both ends, are not."""
    judged = judged_with_seeds(found, "second", circular=False)[0]
    ends = {(row["latent"], row["end"]): row for row in judged_rows(found, judged)}
    for end, topic in (("+", "water"), ("-", "dogs")):
        assert set(ends[0, end]["keywords"].split(", ")[:4]) <= set(TOPICS[topic])
        assert ends[0, end]["coherence"] > 0.3
        assert ends[0, end]["example_auroc"] > 0.75
    labels = {row["label"]: row for row in label_rows(found, judged)}
    assert (labels["water"]["latent"], labels["dogs"]["latent"]) == ("0+", "0-")
    assert min(labels[topic]["auroc"] for topic in ("water", "dogs")) > 0.9


def test_a_target_names_the_end_that_goes_with_it(found: Latents) -> None:
    rows = [row for row in explain_columns(found, ["label"]).rows() if row["latent"] == 0]
    ends = {row["target"]: (row["end"], row["effect"] > 0.5, row["confirmed"]) for row in rows}
    assert ends["label = water"] == ("+", True, 1)
    assert ends["label = dogs"] == ("-", False, 1)


def test_a_dictionary_and_its_opposite_are_one_where_codes_are_signed() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 8))
    assert match(rows, -rows[::-1], signed=True).cosine == pytest.approx(1.0)
    assert match(rows, -rows[::-1], signed=True).same == 1.0
    assert match(rows, -rows[::-1]).cosine < 0.9
