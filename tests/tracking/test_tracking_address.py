"""The address that a start of a sweep uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from saebench.sweep_config import TrackingConfig
from saebench.tracking.address import address


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def chosen(uri: str | None, before: str | None) -> tuple[str, list[str]]:
    said: list[str] = []
    return address(TrackingConfig(uri=uri), before, said.append), said


def test_a_first_start_takes_what_the_spec_resolves_to(tmp_path: Path) -> None:
    assert chosen(None, None) == (f"sqlite:///{tmp_path}/mlflow.db", [])
    assert chosen("http://a:1", None) == ("http://a:1", [])


def test_a_sweep_stays_where_it_began_unless_its_spec_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "old.db").touch()
    old = f"sqlite:///{tmp_path}/old.db"
    assert chosen(None, old) == (old, [f"tracking stays at {old}, where this sweep began"])
    assert chosen("http://a:1", old) == ("http://a:1", [])
    assert chosen(None, f"sqlite:///{tmp_path}/mlflow.db") == (f"sqlite:///{tmp_path}/mlflow.db", [])


def test_a_file_that_is_gone_or_an_address_whose_password_is_not_kept_is_not_gone_back_to(tmp_path: Path) -> None:
    here = f"sqlite:///{tmp_path}/mlflow.db"
    gone = tmp_path / "gone.db"
    assert chosen(None, f"sqlite:///{gone}") == (
        here,
        [f"tracking goes on at {here}: {gone}, where this sweep began, is not there"],
    )
    assert chosen(None, "postgresql://me:***@host/db") == (here, [])
