"""An SAE in MLflow: logged by the tracker, loaded by MLflow, without a pickle."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saebench.config import DataConfig, DatasetConfig, TopKConfig, TrainConfig, TrialConfig
from saebench.report import pick
from saebench.runs.durable import write_json
from saebench.runs.paths import SweepPaths
from saebench.saes import make_sae, save_sae
from saebench.sweep_config import TrackingConfig
from saebench.tracking import Tracker, server

D_IN, K = 384, 8


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory of our own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("here")
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, here: Path, minilm_path: str) -> tuple[str, Any, Path]:
    """(tracking URI, the trial's run, the trial's directory) of a sweep with `log_model: true`."""
    folder = tmp_path_factory.mktemp("model")
    assert here
    paths, uri = SweepPaths(folder / "toy"), f"sqlite:///{folder}/mlflow.db"
    data = DataConfig(model=minilm_path, dataset=DatasetConfig(path="toy"), num_examples=100)
    config = TrialConfig(
        sweep="toy", number=0, stratum="s", point="p", seed=0, data=data,
        sae=TopKConfig(k=K, dict_size=32), train=TrainConfig(samples=40),
    )  # fmt: skip
    trial = paths.trial(0)
    write_json(trial.config, config.model_dump(mode="json"))
    save_sae(make_sae(config.sae, D_IN, torch.randn(64, D_IN), 0), trial.sae)
    tracker = Tracker(paths, TrackingConfig(uri=uri, log_model=True), "toy", interval=0.02)
    tracker.start({})
    tracker.open(config)
    tracker.close_trial(0, "complete")
    assert tracker.close() == (0, None)
    client = server.connect(uri)
    (run,) = client.search_runs([tracker.experiment_id], "tags.`saebench.kind` = 'trial'")
    assert run.data.tags.get("saebench.artifacts") is None
    return uri, run, trial.root


@pytest.fixture(scope="module")
def model(logged: tuple[str, Any, Path]) -> Any:
    import mlflow.pyfunc

    uri, run, _ = logged
    (output,) = run.outputs.model_outputs
    found = server.connect(uri).get_logged_model(output.model_id)
    assert (found.status, found.source_run_id) == ("READY", run.info.run_id)
    return mlflow.pyfunc.load_model(found.artifact_location)


def test_embeddings_become_latents_and_reconstructions_as_the_sae_has_them(
    model: Any, logged: tuple[str, Any, Path]
) -> None:
    from saebench.saes import load_sae

    sae, x = load_sae(logged[2] / "sae"), torch.randn(5, D_IN)
    with torch.inference_mode():
        latents, reconstruction = sae.encode(x).numpy(), sae(x).numpy()
    found = model.predict(x.numpy())
    assert found.shape == (5, 32)
    assert ((found != 0).sum(1) <= K).all()
    np.testing.assert_array_equal(found, latents)
    np.testing.assert_array_equal(model.predict(x.numpy(), params={"output": "reconstruction"}), reconstruction)
    np.testing.assert_array_equal(model.predict(x.numpy().tolist()), latents)


def test_texts_are_encoded_first(model: Any, minilm: Any) -> None:
    texts = ["a small furry animal", "the act of walking"]
    embeddings = minilm.encode(texts)
    np.testing.assert_allclose(
        model.predict(texts, params={"output": "reconstruction"}),
        model.predict(embeddings, params={"output": "reconstruction"}),
        atol=1e-4,
    )


def test_what_is_neither_is_refused_in_words(model: Any) -> None:
    with pytest.raises(ValueError, match="embeddings of 384 numbers"):
        model.predict(np.zeros((2, 7)))
    for texts in (np.array([["two", "columns"]]), np.array([], dtype=str)):
        with pytest.raises(ValueError, match="texts, or embeddings of 384 numbers"):
            model.predict(texts)
    with pytest.raises(ValueError, match="output: loss: must be one of latents, reconstruction"):
        model.predict(np.zeros((2, D_IN)), params={"output": "loss"})


def test_the_model_is_code_and_safetensors_and_the_registry_takes_it(logged: tuple[str, Any, Path]) -> None:
    uri, run, _ = logged
    client = server.connect(uri)
    (output,) = run.outputs.model_outputs
    folder = Path(client.get_logged_model(output.model_id).artifact_location.removeprefix("file://"))
    names = {file.name for file in folder.rglob("*") if file.is_file()}
    assert {"MLmodel", "mlflow_model.py", "sae.safetensors", "sae.json", "config.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]
    client.create_registered_model("toy")
    # not models:/<id>: without a server, MLflow looks that up in its default store, wherever the client points
    version = client.create_model_version("toy", str(folder), run_id=run.info.run_id)
    assert (str(version.version), version.status) == ("1", "READY")
    assert json.loads((folder / "artifacts" / "config.json").read_text())["sweep"] == "toy"
    assert str(folder.parents[2]) not in (folder / "MLmodel").read_text()


def test_what_best_registers_is_the_place_of_the_logged_model(logged: tuple[str, Any, Path]) -> None:
    uri, run, _ = logged
    source, what = pick._model_uri(server.connect(uri), run)
    assert what == "its logged model"
    assert (Path(source.removeprefix("file://")) / "MLmodel").exists()


def test_nothing_is_written_to_another_place(logged: tuple[str, Any, Path], here: Path) -> None:
    """The tracker's thread must not wake MLflow's default store in the working directory."""
    assert logged
    assert not list(here.iterdir())


@pytest.mark.slow
def test_mlflow_serves_it(model: Any, logged: tuple[str, Any, Path], tmp_path: Path) -> None:
    uri, run, _ = logged
    (output,) = run.outputs.model_outputs
    location = server.connect(uri).get_logged_model(output.model_id).artifact_location
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", location, "--env-manager", "local"]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # it calls uvicorn by its name
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out, stderr=out, env=os.environ | {"PATH": path}, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        rows = torch.nn.functional.normalize(torch.randn(3, D_IN)).numpy()
        asked = {"inputs": rows.tolist(), "params": {"output": "reconstruction"}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            served = np.array(json.load(answer)["predictions"])
        np.testing.assert_allclose(served, model.predict(rows, params={"output": "reconstruction"}), atol=1e-5)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except OSError:  # a refused connection is a URLError, which is one
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
