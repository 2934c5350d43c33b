"""Codes on disk: bit for bit what the SAE gives, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latents.planted import D_IN
from numpy.typing import NDArray
from sae_examples import TYPES, example

from saebench.latents import codes as codes_module
from saebench.latents.codes import Chunk, Codes, CodesError, chunk_of, read_codes, write_codes
from saebench.latents.trial import encode_rows, rows_at_a_time
from saebench.saes import make_sae


def rows(n: int = 700) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((n, D_IN)).astype(np.float32)


def dense(n: int = 50, width: int = 12, seed: int = 0) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return np.where(draw.random((n, width)) < 0.3, draw.standard_normal((n, width)), 0).astype(np.float32)


def writing(folder: Path, whole: NDArray[np.float32], stop_before: int = 1 << 60, **about: Any) -> Codes:
    """Pieces of ten rows; the writer dies before the piece that begins at `stop_before`."""

    def piece(start: int, stop: int) -> Chunk:
        if start >= stop_before:
            raise KeyboardInterrupt
        return chunk_of(np.ascontiguousarray(whole[start:stop]))

    return write_codes(folder, {"sae": "x", **about}, len(whole), whole.shape[1], piece, 10)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", TYPES)
def test_codes_are_those_of_encode_bit_for_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench.latents.trial.CELLS", 4096)
    sae = make_sae(example(kind, dict_size=64), D_IN, torch.from_numpy(rows()), 0)  # type: ignore[arg-type]
    sae.calibrate(torch.from_numpy(rows()))
    x, size = rows(), rows_at_a_time(64)
    assert size == 64
    values, latents, counts = encode_rows(sae, x)
    with torch.no_grad():
        expected = torch.cat([sae.encode(some) for some in torch.from_numpy(x).split(size)]).numpy()
    found = Codes(values, latents, np.concatenate([[0], np.cumsum(counts)]), 64).dense()
    assert 0 < len(values) < expected.size
    assert np.array_equal(found.view(np.int32) & 0x7FFFFFFF, expected.view(np.int32) & 0x7FFFFFFF)  # -0 is 0
    assert np.array_equal(found, expected)


def test_signed_codes_keep_their_sign_and_silent_rows_are_rows(tmp_path: Path) -> None:
    whole = dense()
    whole[7] = 0
    found = writing(tmp_path / "c", whole)
    assert np.array_equal(found.dense(), whole)
    assert (whole < 0).any()
    assert found.counts[7] == 0
    assert (found.values.dtype, found.latents.dtype, found.offsets.dtype) == (np.float32, np.int32, np.int64)
    assert isinstance(found.values, np.memmap)


def test_an_sae_that_never_fires_has_codes_too(tmp_path: Path) -> None:
    found = writing(tmp_path / "c", np.zeros((25, 4), np.float32))
    assert (found.rows, len(found.values)) == (25, 0)
    assert read_codes(tmp_path / "c").rows == 25


@pytest.mark.parametrize("stop", [0, 10, 30, 40])
def test_a_stopped_writer_resumes_and_leaves_the_same_files(tmp_path: Path, stop: int) -> None:
    whole = dense(45)
    writing(tmp_path / "straight", whole)
    with pytest.raises(KeyboardInterrupt):
        writing(tmp_path / "stopped", whole, stop_before=stop)
    with pytest.raises(CodesError):
        read_codes(tmp_path / "stopped")
    asked: list[int] = []
    write_codes(
        tmp_path / "stopped", {"sae": "x"}, 45, 12,
        lambda a, b: asked.append(a) or chunk_of(np.ascontiguousarray(whole[a:b])), 10,  # type: ignore[func-returns-value]
    )  # fmt: skip
    assert asked == list(range(stop, 45, 10))
    assert content(tmp_path / "stopped") == content(tmp_path / "straight")


def test_a_piece_that_was_half_written_is_written_again(tmp_path: Path) -> None:
    whole = dense(45)
    with pytest.raises(KeyboardInterrupt):
        writing(tmp_path / "c", whole, stop_before=30)
    part = tmp_path / "c.part"
    with (part / "values.npy").open("ab") as file:  # the writer died inside the next piece
        file.write(b"\x00" * 7)
    raw = bytearray((part / "latents.npy").read_bytes())
    raw[-1] ^= 1  # and the disk lost the end of the third
    (part / "latents.npy").write_bytes(raw)
    assert np.array_equal(writing(tmp_path / "c", whole).dense(), whole)


def test_what_was_begun_for_another_sae_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        writing(tmp_path / "c", dense(45, seed=1), stop_before=30, sae="another")
    assert np.array_equal(writing(tmp_path / "c", dense(45)).dense(), dense(45))


@pytest.mark.parametrize("name", ["values", "latents", "offsets"])
def test_a_damaged_byte_is_found_and_the_codes_are_made_again(tmp_path: Path, name: str) -> None:
    whole = dense()
    writing(tmp_path / "c", whole)
    path = tmp_path / "c" / f"{name}.npy"
    raw = bytearray(path.read_bytes())
    raw[200] ^= 4
    path.write_bytes(raw)
    with pytest.raises(CodesError, match="damaged"):
        read_codes(tmp_path / "c")
    assert np.array_equal(writing(tmp_path / "c", whole).dense(), whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "values.npy").write_bytes((f / "values.npy").read_bytes()[:-9]), "cannot be read|cut off"),
        (lambda f: (f / "latents.npy").unlink(), "cannot be read"),
        (lambda f: (f / "codes.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "codes.json").write_text('{"format": "other"}'), "not codes that this version"),
        (lambda f: shutil.copy(f / "latents.npy", f / "values.npy"), "not a list of float32"),
    ],
)
def test_what_is_not_whole_is_refused_in_one_line(tmp_path: Path, change: Any, said: str) -> None:
    writing(tmp_path / "c", dense())
    change(tmp_path / "c")
    with pytest.raises(CodesError, match=said) as caught:
        read_codes(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_the_manifest_says_what_the_codes_are_of(tmp_path: Path) -> None:
    writing(tmp_path / "c", dense(), texts="abc")
    about = json.loads((tmp_path / "c" / codes_module.MANIFEST).read_text())
    assert about["texts"] == "abc"
    assert [piece["rows"] for piece in about["pieces"]] == [10] * 5


def test_a_width_of_65_536_latents_is_encoded_a_few_rows_at_a_time() -> None:
    assert rows_at_a_time(65_536) == 128
    assert rows_at_a_time(6_144) == 1024
    assert rows_at_a_time(1 << 24) == 1


def test_codes_with_nan_are_refused() -> None:
    with pytest.raises(CodesError, match="NaN"):
        Codes.of(np.array([[np.nan, 0.0]]))
