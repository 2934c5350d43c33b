"""SentenceEncoder gives what SentenceTransformer.encode gives, in less time."""

from __future__ import annotations

import threading
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import HashModel, sentences
from torch import Tensor

from saebench.config import DataConfig, DatasetConfig
from saebench.errors import DataError
from saebench.hub import embedding_width
from saebench.stores import encoder_pool
from saebench.stores import sentence_encoder as module
from saebench.stores.sentence_encoder import SentenceEncoder

TEXTS = [*sentences(40), "one", "a " * 400, "word"]


def config(**changes: Any) -> DataConfig:
    base = {"model": "sentence-transformers/all-MiniLM-L6-v2", "num_examples": 10, "encode_batch_size": 8}
    return DataConfig(**{**base, **changes}, dataset=DatasetConfig(path="json"))


@pytest.fixture
def encoder(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> SentenceEncoder:
    """The packaged MiniLM, which the whole session shares."""
    monkeypatch.setattr(module, "_load", lambda _data, _device: minilm)
    return SentenceEncoder(config(), "cpu")


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b).min())


def test_rows_are_those_of_the_model_in_the_order_of_the_texts(encoder: SentenceEncoder, minilm: Any) -> None:
    rows = encoder.embed(TEXTS)
    assert (rows.shape, rows.dtype, encoder.d_in) == ((43, 384), torch.float32, 384)
    expected = torch.from_numpy(minilm.encode(TEXTS))
    assert torch.allclose(rows, expected, atol=1e-5)


def test_batches_are_of_similar_length_and_about_the_same_number_of_tokens(encoder: SentenceEncoder) -> None:
    batches = list(encoder.batches(encoder.tokenise(TEXTS)))
    lengths = encoder._tokens(TEXTS).lengths
    assert sorted(np.concatenate([index for index, _ in batches]).tolist()) == list(range(len(TEXTS)))
    longest = [int(lengths[index].max()) for index, _ in batches]
    assert longest == sorted(longest, reverse=True)
    budget = 8 * int(np.median(lengths))
    assert lengths.max() == 256, "truncated to the model's limit, which is more than a batch may hold"
    for index, features in batches:
        assert features["input_ids"].shape == (len(index), int(lengths[index].max()))
        assert features["input_ids"].numel() <= budget or len(index) == 1
    computed = sum(features["input_ids"].numel() for _, features in batches)
    assert computed < 1.1 * lengths.sum(), "less than a tenth is padding"


def test_bfloat16_keeps_the_direction(minilm: Any, monkeypatch: pytest.MonkeyPatch, encoder: SentenceEncoder) -> None:
    monkeypatch.setattr(module, "_load", lambda _data, _device: minilm)
    lower = SentenceEncoder(config(precision="bfloat16"), "cpu")
    rows, exact = lower.embed(TEXTS[:20]), encoder.embed(TEXTS[:20])
    assert not torch.equal(rows, exact)
    assert cosine(rows, exact) > 0.9999


def test_prompt_and_limit_reach_the_model(minilm: Any, minilm_path: str) -> None:
    prompted = SentenceEncoder(config(model=minilm_path, prompt="query: ", max_seq_length=16), "cpu")
    assert prompted.info()["max_seq_length"] == 16
    expected = minilm.encode(["query: short"], convert_to_tensor=True)
    assert torch.allclose(prompted.embed(["short"]), expected, atol=1e-5)
    assert int(prompted._tokens(["a " * 400]).lengths[0]) == 16
    assert minilm.max_seq_length == 256


@pytest.mark.parametrize(("precision", "hint"), [("float16", True), ("bfloat16", False), ("float32", False)])
def test_a_model_that_overflows_in_float16_is_told_of_it(precision: str, hint: bool) -> None:
    encoder = SentenceEncoder(config(precision=precision), "cpu", HashModel())
    with pytest.raises(DataError, match=r"gives NaN or infinity for 1 texts, such as 'nan b'") as raised:
        encoder.embed(["a", "nan b"])
    assert ("float16 is too narrow" in str(raised.value)) == hint


def test_normalisation_is_to_length_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_load", lambda _data, _device: HashModel())
    rows = SentenceEncoder(config(normalize=True), "cpu").embed(["a", "b"])
    assert torch.allclose(rows.norm(dim=1), torch.ones(2))
    assert not torch.allclose(SentenceEncoder(config(), "cpu").embed(["a"]).norm(), torch.ones(1))


def test_a_batch_that_does_not_fit_the_gpu_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(HashModel):
        def preprocess(self, texts: Any, prompt: str | None = None) -> dict[str, Any]:
            rows = super().preprocess(texts, prompt)["rows"]
            return {"rows": rows, "input_ids": rows, "modality": "text"}

        def __call__(self, features: Any) -> dict[str, Any]:
            if len(features["rows"]) > 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().__call__(features)

    monkeypatch.setattr(module, "_load", lambda _data, _device: Small())
    assert torch.equal(SentenceEncoder(config(), "cpu").embed(TEXTS), HashModel().encode(TEXTS))


@pytest.mark.parametrize(("device", "beside"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_a_gpu_that_keeps_what_it_still_reads_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, device: str, beside: bool
) -> None:
    """MPS reads the memory of a tensor that is gone by then, and gives other embeddings without a word."""
    plain, asked = torch.Tensor.to, []

    def to(self: Tensor, *args: Any, **options: Any) -> Tensor:
        if args and isinstance(args[0], torch.device):
            asked.append((args[0].type, options.get("non_blocking", False)))
            return self
        return plain(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    encoder = SentenceEncoder(config(), "cpu", HashModel())
    asked.clear()
    encoder.device = torch.device(device)
    encoder.forward(HashModel().preprocess(["a"]))
    assert asked == [(device, beside)]


def test_what_did_not_fit_the_gpu_is_let_go_before_its_halves_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler's exception holds the frames of the pass that failed, and they hold what it had allocated."""
    held: list[weakref.ref[Tensor]] = []

    class Full(HashModel):
        def preprocess(self, texts: Any, prompt: str | None = None) -> dict[str, Any]:
            rows = super().preprocess(texts, prompt)["rows"]
            return {"rows": rows, "input_ids": rows}

        def __call__(self, features: Any) -> dict[str, Any]:
            assert [ref() for ref in held] == [None] * len(held)
            hidden = torch.ones(3)
            if len(features["rows"]) > 3:
                held.append(weakref.ref(hidden))
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().__call__(features)

    monkeypatch.setattr(module, "_load", lambda _data, _device: Full())
    assert torch.equal(SentenceEncoder(config(), "cpu").embed(TEXTS), HashModel().encode(TEXTS))
    assert len(held) > 2


@pytest.mark.parametrize("options", [{}, {"prompt": ""}, {"prompt": "anvil 7 "}, {"normalize": True}], ids=str)
@pytest.mark.parametrize(
    "habits", [{"truncate_dim": 5}, {"prompts": {"q": "birch 1 "}, "default_prompt_name": "q"}], ids=str
)
def test_a_model_with_habits_of_its_own_keeps_them(
    static_model: str, tmp_path: Path, options: dict[str, Any], habits: dict[str, Any]
) -> None:
    """A default prompt and a width to cut to are in the model's folder, and `encode` acts on them."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(static_model, device="cpu", **habits).save(str(tmp_path / "model"))
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    asked = {"prompt": options.get("prompt"), "normalize_embeddings": options.get("normalize", False)}
    encoder = SentenceEncoder(config(model=str(tmp_path / "model"), **options), "cpu")
    assert torch.allclose(encoder.embed(TEXTS), torch.from_numpy(plain.encode(TEXTS, **asked)), atol=1e-6)
    assert encoder.d_in == embedding_width(str(tmp_path / "model"))


def test_a_model_that_is_given_keeps_to_the_configuration(minilm_path: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm_path, device="cpu").train()
    given = SentenceEncoder(config(model=minilm_path, max_seq_length=16), "cpu", model)
    loaded = SentenceEncoder(config(model=minilm_path, max_seq_length=16), "cpu")
    assert torch.equal(given.embed(TEXTS[-3:]), loaded.embed(TEXTS[-3:]))
    with pytest.raises(DataError, match="max_seq_length: 513: this model has 512 positions"):
        SentenceEncoder(config(model=minilm_path, max_seq_length=513), "cpu", model)


@pytest.mark.parametrize(("limit", "why"), [(513, "this model has 512 positions"), (2, "none of a text would be kept")])
def test_a_limit_that_the_model_cannot_keep_is_refused(minilm_path: str, limit: int, why: str) -> None:
    with pytest.raises(DataError, match=rf"model .*: max_seq_length: {limit}: .*{why}"):
        SentenceEncoder(config(model=minilm_path, max_seq_length=limit), "cpu")


def test_a_model_without_a_limit_refuses_one(static_model: str) -> None:
    with pytest.raises(DataError, match="max_seq_length: this model has no such limit"):
        SentenceEncoder(config(model=static_model, max_seq_length=5), "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_encodes_in_every_arithmetic(minilm_path: str, encoder: SentenceEncoder, precision: str) -> None:
    """A model of its own: `encoder` and its copy on the CPU belong to the session."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm_path, device="cuda:0").eval()
    rows = SentenceEncoder(config(precision=precision), "cuda:0", model).embed(TEXTS)
    assert rows.device.type == "cpu"
    assert cosine(rows, encoder.embed(TEXTS)) > 0.9999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_real_batch_that_does_not_fit_the_gpu_is_halved(minilm_path: str, encoder: SentenceEncoder) -> None:
    """PyTorch gets 1 GiB more than it has; a feed-forward of 512 texts of 250 tokens needs 0.8 GB twice."""
    from sentence_transformers import SentenceTransformer

    texts = [f"{i} " + "a " * 250 for i in range(512)]
    model = SentenceTransformer(minilm_path, device="cuda:0").eval()
    gpu = SentenceEncoder(config(encode_batch_size=512), "cuda:0", model)
    free = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 30)) / free)
    try:
        rows = gpu.embed(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_stats()["num_ooms"] > 0, "the batch was halved at least once"
    assert cosine(rows[:8], encoder.embed(texts[:8])) > 0.9999


def test_texts_are_prepared_beside_the_device_and_computed_in_lower_precision(
    minilm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of autocast, and that the tokenizer runs in another thread than the model."""
    asked: list[tuple[str, torch.dtype]] = []
    where: dict[str, set[str]] = {"tokens": set(), "model": set()}
    plain = minilm.preprocess

    class Model:
        max_seq_length, tokenizer = minilm.max_seq_length, minilm.tokenizer
        modalities = ("text", "image")  # so that it makes its features itself

        def preprocess(self, *args: Any, **options: Any) -> Any:
            where["tokens"].add(threading.current_thread().name)
            return plain(*args, **options)

        def __call__(self, features: Any) -> Any:
            where["model"].add(threading.current_thread().name)
            return minilm(features)

    encoder = SentenceEncoder(config(precision="float16"), "cpu", Model())
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: (asked.append((kind, dtype)), nullcontext())[1])
    where["tokens"].clear()
    where["model"].clear()
    encoder.embed(TEXTS)
    assert set(asked) == {("cpu", torch.float16)}
    assert where["model"] == {threading.current_thread().name}
    assert len(where["tokens"]) == 1
    assert not where["tokens"] & where["model"]


def test_every_gpu_gets_a_process_that_sees_only_it() -> None:
    places = encoder_pool._places(["cuda:GPU-abc", "cuda:1", "cuda:0"], 100_000)
    assert [place.inside for place in places] == ["cuda:0"] * 3
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places] == ["GPU-abc", "1", "0"]


# --- more than one process on a GPU ----------------------------------------------------------------------------------

TOKENS, DEVICE = {"tokens": 0.19, "device": 0.02, "all": 0.2}, {"tokens": 0.19, "device": 0.18, "all": 0.2}
"""What an encoder's time goes into where it waits for tokens, and where the device is as slow."""


class FakeChild:
    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name, self.environment, self.sent = name, environment, list[Any]()

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def close(self) -> None: ...


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeChild]:
    made: list[FakeChild] = []

    def start(_module: str, name: str, environment: dict[str, str], _inbox: Any) -> FakeChild:
        made.append(FakeChild(name, environment))
        return made[-1]

    monkeypatch.setattr("saebench.stores.child_process.start", start)
    monkeypatch.setattr(encoder_pool, "find_model", lambda *_: ("m", True))
    monkeypatch.setattr(encoder_pool, "count_cores", lambda: 16)
    return made


def on(*devices: str) -> Any:
    crew = encoder_pool.EncoderPool(config(num_examples=10**6), Path("x"), list(devices), None)  # type: ignore[arg-type]
    crew.start()
    return crew


def ready(crew: Any) -> None:
    for child in [*crew.loading]:
        crew.mark_ready(child, {"d_in": 4, "info": {}, "fingerprint": []})


def work(crew: Any, seconds: dict[str, float], left: int = 10**6) -> None:
    """Six seconds of it for everybody."""
    for child in [*crew.ready]:
        for _ in range(30):
            crew.help(child, seconds, left)


def test_a_gpu_that_waits_for_tokens_gets_more_processes_one_at_a_time(started: list[FakeChild]) -> None:
    crew = on("cuda:GPU-abc")
    ready(crew)
    for count in (2, 3, 4, 4):
        work(crew, TOKENS)
        assert len(started) == count
        work(crew, TOKENS)
        assert len(started) == count, "not before the last one is ready"
        ready(crew)
    assert all(child.environment == started[0].environment for child in started)
    assert all(child.sent == started[0].sent for child in started)


@pytest.mark.parametrize(
    ("devices", "seconds", "left"),
    [
        (["cuda:0"], DEVICE, 10**6),
        (["cuda:0"], TOKENS, encoder_pool.HELP_TEXTS - 1),
        (["cpu"], TOKENS, 10**6),
        ([f"cuda:{n}" for n in range(8)], TOKENS, 10**6),
        (["cuda:0"], {"tokens": 0.05, "device": 0.01, "all": 0.2}, 10**6),
    ],
    ids=["device", "little left", "cpu", "no cores for more", "no work"],
)
def test_no_process_is_started_that_would_not_help(
    started: list[FakeChild], devices: list[str], seconds: dict[str, float], left: int
) -> None:
    crew = on(*devices)
    ready(crew)
    before = len(started)
    work(crew, seconds, left)
    assert len(started) == before


def test_a_helper_without_room_on_the_gpu_is_the_last_and_does_not_end_the_build(started: list[FakeChild]) -> None:
    crew = on("cuda:0")
    first = crew.loading[0]
    assert not crew.is_optional(first), "the only one"
    ready(crew)
    work(crew, TOKENS)
    assert crew.is_optional(crew.loading[0])
    crew.remove(crew.loading[0])
    work(crew, TOKENS)
    assert (len(started), crew.ready) == (2, [first])
