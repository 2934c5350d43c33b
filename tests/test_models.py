"""Encoders are found by name, and their width without loading them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from saebench.models import embedding_width, resolve_model


def test_the_packaged_copy_stands_for_its_name(minilm_path: str) -> None:
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"):
        assert resolve_model(name) == minilm_path
        assert embedding_width(name) == 384


def test_a_pinned_revision_is_not_replaced_by_the_packaged_copy() -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert resolve_model(name, "abc123") == name


def test_names_that_are_not_here_stay_and_have_no_known_width() -> None:
    for name in ("nobody/nothing", "nothing", "a" * 5000, "x/y/z", "~nobody/x", "", "é"):
        assert resolve_model(name) == name or name == ""
        assert embedding_width(name) is None or name == ""


def test_a_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == str(tmp_path / "model")


def model(folder: Path, *modules: tuple[str, dict[str, object]]) -> str:
    """A SentenceTransformer's folder as far as its JSON files go."""
    listed = []
    for i, (kind, config) in enumerate(modules):
        inside = folder / f"{i}_{kind}"
        inside.mkdir(parents=True)
        (inside / "config.json").write_text(json.dumps(config))
        listed.append({"idx": i, "name": str(i), "path": inside.name, "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(listed))
    return str(folder)


BERT = ("Transformer", {"hidden_size": 48})


def test_the_width_follows_the_modules(tmp_path: Path) -> None:
    old = ("Pooling", {"word_embedding_dimension": 48, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True})
    new = ("Pooling", {"embedding_dimension": 48, "pooling_mode": ["mean", "max", "cls"]})
    assert embedding_width(model(tmp_path / "a", BERT)) == 48
    assert embedding_width(model(tmp_path / "b", BERT, old)) == 96
    assert embedding_width(model(tmp_path / "c", BERT, new)) == 144
    dense = ("Dense", {"in_features": 96, "out_features": 20})
    assert embedding_width(model(tmp_path / "d", BERT, old, dense, ("Normalize", {}))) == 20
    assert embedding_width(model(tmp_path / "e", BERT, ("Mystery", {}))) is None


def test_a_truncated_model_and_a_bare_transformer_have_their_width(tmp_path: Path) -> None:
    folder = model(tmp_path / "a", BERT)
    (tmp_path / "a" / "config_sentence_transformers.json").write_text('{"truncate_dim": 16}')
    assert embedding_width(folder) == 16
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"d_model": 31}')
    assert embedding_width(str(tmp_path / "bare")) == 31


def test_a_static_embedding_has_the_columns_of_its_table(tmp_path: Path) -> None:
    folder = model(tmp_path, ("StaticEmbedding", {}))
    header = json.dumps({"embedding.weight": {"dtype": "F32", "shape": [7, 5], "data_offsets": [0, 140]}}).encode()
    weights = next(tmp_path.glob("0_*")) / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(header)) + header + bytes(140))
    assert embedding_width(folder) == 5
    weights.write_bytes(b"torn")
    assert embedding_width(folder) is None


def test_broken_json_is_no_width_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("{not json")
    assert embedding_width(str(tmp_path)) is None
    (tmp_path / "modules.json").write_text('[{"no": "type"}]')
    assert embedding_width(str(tmp_path)) is None
