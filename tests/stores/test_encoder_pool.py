"""Where the encoding processes of a build run."""

from __future__ import annotations

import pytest

from saebench.errors import DataError
from saebench.stores import encoder_pool


@pytest.mark.parametrize(
    ("seen", "device", "given"),
    [
        (None, "cuda:1", "1"),
        ("4,6", "cuda:1", "6"),
        ("GPU-abc, GPU-def", "cuda:0", "GPU-abc"),
        ("GPU-abc", "cuda:GPU-abc", "GPU-abc"),
        ("", "cuda:0", ""),
    ],
)
def test_the_number_of_a_gpu_counts_those_that_are_visible_here(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, device: str, given: str
) -> None:
    """A script of somebody who was given GPUs 4 and 6 encoded on somebody else's 0 and 1."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    [place] = encoder_pool._places([device], 1_000)
    assert place[1:] == ("cuda:0", {"CUDA_VISIBLE_DEVICES": given}, None)


def test_a_gpu_that_is_not_visible_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(DataError, match=r"cuda:2: no such GPU \(CUDA_VISIBLE_DEVICES=4,6\)"):
        encoder_pool._places(["cuda:2"], 1_000)
