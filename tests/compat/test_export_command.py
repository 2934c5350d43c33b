"""`saebench export TRIAL --to DIR --format ...` from a trial's directory to another project's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from grown import cloud, grown
from torch.testing import assert_close

from saebench.cli import cli
from saebench.compat.dictionary_learning import import_dictionary_learning
from saebench.compat.saelens import import_saelens
from saebench.errors import UserError
from saebench.saes import save_sae

LAYOUTS = {
    "saelens": ({"cfg.json", "sae_weights.safetensors"}, import_saelens),
    "dictionary_learning": ({"config.json", "ae.safetensors"}, import_dictionary_learning),
}


def export(trial: Path, to: Path, layout: str) -> Result:
    return CliRunner().invoke(cli, ["export", str(trial), "--to", str(to), "--format", layout])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["matryoshka", "gated"])
def test_a_trial_is_written_in_the_layout_and_says_which_files(kind: str, layout: str, tmp_path: Path) -> None:
    sae, x = grown(kind), cloud(32, seed=4)
    save_sae(sae, tmp_path / "0007" / "sae")
    result = export(tmp_path / "0007", tmp_path / "out", layout)
    assert result.exit_code == 0, result.output
    names, read = LAYOUTS[layout]
    assert {Path(line).name for line in result.stdout.split()} == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert_close(read(tmp_path / "out").encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_cannot_hold_it_is_one_line(layout: str, tmp_path: Path) -> None:
    save_sae(grown("topk", "layer_norm"), tmp_path / "0007" / "sae")
    result = export(tmp_path / "0007", tmp_path / "out", layout)
    assert isinstance(result.exception, UserError | SystemExit)
    assert "preprocess: layer_norm" in str(result.exception) + result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_threshold_never_calibrated_is_one_line(layout: str, tmp_path: Path) -> None:
    sae: Any = grown("batchtopk")
    sae.threshold.fill_(torch.nan)
    save_sae(sae, tmp_path / "0007" / "sae")
    result = export(tmp_path / "0007", tmp_path / "out", layout)
    assert isinstance(result.exception, UserError | SystemExit)
    assert "the threshold is not calibrated" in str(result.exception) + result.output
    assert not (tmp_path / "out").exists()
