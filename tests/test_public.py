"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import saebench


@pytest.mark.parametrize("name", [n for n in saebench.__all__ if n != "__version__"])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(saebench, name) is not None
    assert name in dir(saebench)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = saebench.nothing


def test_version() -> None:
    assert saebench.__version__[0].isdigit()


def test_importing_the_package_costs_nothing() -> None:
    """No torch, no MLflow, no Optuna, no pandas before something asks for them."""
    heavy = ("torch", "mlflow", "optuna", "pandas", "pydantic")
    code = f"import saebench, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_configuration_of_a_trial_and_of_an_export_is_read(tmp_path: Path) -> None:
    from fakes import trial_config

    from saebench.runs.paths import TrialPaths
    from saebench.runs.state import write_config

    config = trial_config(3)
    write_config(TrialPaths(tmp_path), config)
    assert saebench.trial_config(tmp_path) == config
    (tmp_path / "config.json").rename(tmp_path / "trial.json")
    assert saebench.trial_config(str(tmp_path)) == config
    (tmp_path / "trial.json").write_text((tmp_path / "trial.json").read_text().replace('"number": 3', '"number": 4'))
    with pytest.raises(saebench.UserError, match="was changed after it was written"):
        saebench.trial_config(tmp_path)
    (tmp_path / "trial.json").unlink()
    with pytest.raises(saebench.UserError, match="not a trial, nor an export"):
        saebench.trial_config(tmp_path)


def test_every_public_module_is_there() -> None:
    assert [name for name in saebench._MODULES if getattr(saebench, name) is None] == []
