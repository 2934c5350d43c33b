"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys

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
