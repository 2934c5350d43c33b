"""A build that is killed, wherever that happens, ends in the same bytes as one that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from corpora import HashModel, sentences, tree, write_jsonl

from saebench.config import DataConfig, DatasetConfig
from saebench.errors import DataError
from saebench.stores import cache

Corpus = Callable[..., DataConfig]


def build_and_be_killed(data: DataConfig, cache_dir: Path, after: float) -> bool:
    """Build in a forked process, SIGKILL it after some seconds; whether it had finished by then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking with threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            cache.build(data, cache_dir)
            code = 0
        finally:
            os._exit(code)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.usefixtures("small_pieces")
def test_twenty_kills_at_random_moments_leave_the_same_bytes(
    corpus: Corpus, tmp_path: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)  # a forked process must not wait for OpenMP threads that it does not have
    texts = sentences(600)
    data = corpus([*texts, *texts[:100]])
    whole = cache.build(data, tmp_path / "whole")
    plain = inline.preprocess
    monkeypatch.setattr(inline, "preprocess", lambda *a, **k: (time.sleep(0.002), plain(*a, **k))[1])
    random_ = random.Random(0)
    states: set[str] = set()
    kills = 0
    begun = time.perf_counter()
    assert not build_and_be_killed(data, tmp_path / "never", 0.0)
    started = time.perf_counter() - begun
    begun = time.perf_counter()
    cache.build(data, tmp_path / "timed")
    seconds = started + time.perf_counter() - begun
    """What an undisturbed build takes on this machine at this load: kills fall anywhere in it."""
    for _ in range(200):
        finished = build_and_be_killed(data, tmp_path / "killed", random_.uniform(0.0, seconds))
        if finished:
            for path in (tmp_path / "killed" / "embeddings").glob("*/*rows*"):
                path.unlink()  # and on from the texts
            if kills >= 20:
                break
            continue
        kills += 1
        folder = tmp_path / "killed" / "embeddings" / whole.cache_key
        states |= {path.name.split("-")[-2] if "-" in path.name else path.name for path in folder.glob("*")}
        if kills >= 20:
            break
    assert kills == 20
    assert len(states & {"reading", "texts", "parts"}) >= 2, "kills fell in different phases"
    entry = cache.build(data, tmp_path / "killed")
    assert tree(entry.directory) == tree(whole.directory)


CODE = """
import sys
from pathlib import Path
from saebench.config import DataConfig
from saebench.stores import cache
stages = []
data = DataConfig.model_validate_json(sys.argv[1])
entry = cache.build(data, Path(sys.argv[2]), on_progress=lambda p: (stages.append(p.stage), print(p.stage, flush=True)))
print(entry.count, entry.d_in, "torch" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_real_processes_killed_while_encoding_and_a_caller_free_of_torch(tmp_path: Path, static_model: str) -> None:
    texts = sentences(6_000)
    dataset = DatasetConfig(path="json", data_files=str(write_jsonl(tmp_path / "real.jsonl", texts)))
    data = DataConfig(model=static_model, dataset=dataset, num_examples=5_500)
    command = [sys.executable, "-c", CODE, data.model_dump_json(), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert any(line == "encoding\n" for line in first.stdout)
        encoders = psutil.Process(first.pid).children(recursive=True)
        first.kill()
    assert len(encoders) > 0
    assert psutil.wait_procs(encoders, timeout=60)[1] == [], "encoders end with the process that started them"
    assert cache.find(data, tmp_path / "killed") is None or first.returncode == 0
    second = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert second.stdout.splitlines()[-1] == "5500 12 False", second.stderr
    inline = cache.build(data, tmp_path / "inline")
    assert tree(tmp_path / "killed" / "embeddings" / inline.cache_key) == tree(inline.directory)


@pytest.mark.usefixtures("threads")
def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path, corpus: Corpus, cache_dir: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"model .*empty: cannot be loaded: [^\n]+$"):
        cache.build(corpus(["a"], model=str(tmp_path / "empty")), cache_dir)
    assert not [path for path in (cache_dir / "embeddings").iterdir() if path.is_dir()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_process_on_a_gpu_builds_the_entry(tmp_path: Path, minilm_path: str, minilm: Any) -> None:
    texts = sentences(1_500)
    dataset = DatasetConfig(path="json", data_files=str(write_jsonl(tmp_path / "gpu.jsonl", texts)))
    data = DataConfig(model=minilm_path, dataset=dataset, num_examples=1_200, precision="bfloat16")
    entry = cache.build(data, tmp_path / "cache", ["cuda:0"])
    rows = torch.from_numpy(entry.rows()[0][1_000:1_050].copy())
    exact = minilm.encode(texts[1_000:1_050], convert_to_tensor=True).cpu()
    assert (entry.count, entry.d_in) == (1_200, 384)
    assert float(torch.nn.functional.cosine_similarity(rows, exact).min()) > 0.9999
