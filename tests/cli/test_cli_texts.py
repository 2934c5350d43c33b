"""`saebench status` says what became of the texts."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from saebench.cli import cli
from saebench.runs.paths import SweepPaths


def test_status_says_what_was_left_out_and_what_leaks(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "toy")
    paths.root.mkdir()
    data = {"read": 1000, "kept": 500, "empty": 500, "truncated": 3, "max_seq_length": 256, "equal_test": 2}
    spec = {
        "name": "toy",
        "data": {"model": "m", "dataset": {"path": "org/texts"}, "num_examples": 10_000},
        "sae": [{"type": "topk", "k": 2, "dict_size": 8}],
        "train": {"samples": 10_000},
    }
    paths.lock.write_text(json.dumps({"format": 1, "name": "toy", "spec": spec, "d_in": 8, "data": data}))
    shown = CliRunner().invoke(cli, ["status", "toy", "--runs-dir", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "of 1,000 rows read, left out: 500 empty" in shown.output
    assert "3 texts were cut at the encoder's limit of 256 tokens" in shown.output
    assert "2 of the test texts have the same embedding as a training text" in shown.output
