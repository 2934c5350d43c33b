"""ActivationsStoreSBERT: the mapping's way, the stream's way and the cache's way."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import HashModel, sentences, write_jsonl
from torch import Tensor

from saebench.config import DataConfig, TopKConfig, TrainConfig
from saebench.errors import DataError
from saebench.stores import ActivationsStoreSBERT, DataExhausted, cache, open_store, tidy
from saebench.stores.rows import PREFETCH, CachedRows
from saebench.stores.texts import Division, hash_text, threshold
from saebench.trial.trainer import Training, train

Corpus = Callable[..., DataConfig]


def mapping(tmp_path: Path, texts: list[Any], **changes: Any) -> dict[str, Any]:
    """The seed's keys."""
    path = write_jsonl(tmp_path / "texts.jsonl", texts)
    base = {"dataset_path": "json", "data_files": str(path), "model_batch_size": 8, "device": "cpu"}
    return {**base, "num_batches_in_buffer": 4, "num_examples": 100_000, "batch_size": 16, **changes}


def rows_set(rows: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in rows.tolist())


def serve_all(store: ActivationsStoreSBERT) -> list[Tensor]:
    batches: list[Tensor] = []
    while True:
        try:
            batches.append(store.next_batch())
        except DataExhausted:
            return batches


# --- the mapping -----------------------------------------------------------------------------------------------------


def test_the_snippet_runs_as_it_stands(tmp_path: Path) -> None:
    sbert, config = HashModel(), mapping(tmp_path, sentences(100))
    store = ActivationsStoreSBERT(model=sbert, cfg=config)
    batch = store.next_batch()
    assert (batch.shape, batch.dtype) == ((16, 8), torch.float32)
    weight = torch.ones(8, 2, requires_grad=True)
    (batch @ weight).sum().backward()  # an inference tensor would raise here
    assert store.examples_used == 16


@pytest.mark.parametrize("count", [1, 7, 31, 32, 33, 64, 70, 100])
@pytest.mark.parametrize(("model_batch", "buffered", "batch"), [(8, 4, 16), (32, 1, 7), (5, 3, 64)])
def test_every_row_is_served_once(tmp_path: Path, count: int, model_batch: int, buffered: int, batch: int) -> None:
    model, texts = HashModel(), sentences(count)
    cfg = mapping(tmp_path, texts, model_batch_size=model_batch, num_batches_in_buffer=buffered, batch_size=batch)
    store = ActivationsStoreSBERT(model, cfg)
    batches = serve_all(store)
    assert rows_set(torch.cat(batches)) == rows_set(model.encode(texts))
    assert all(len(one) == batch for one in batches[:-1]), "only the last is short"
    assert store.examples_used == count


@pytest.mark.parametrize("model_batch", [8, 32, 64])
def test_a_cap_of_fifty_serves_fifty(tmp_path: Path, model_batch: int) -> None:
    store = ActivationsStoreSBERT(
        HashModel(), mapping(tmp_path, sentences(200), num_examples=50, model_batch_size=model_batch)
    )
    assert sum(map(len, serve_all(store))) == 50
    with pytest.raises(RuntimeError, match="every text has been"):
        store.next_batch()


def test_the_methods_of_the_seed_keep_their_names(tmp_path: Path) -> None:
    texts, model = sentences(70), HashModel()
    store = ActivationsStoreSBERT(model, mapping(tmp_path, texts))
    assert store.get_batch_tokens() == texts[:8]
    assert torch.equal(store.get_activations(["a", "b"]), model.encode(["a", "b"]))
    assert torch.equal(store._fill_buffer(), model.encode(texts[8:40]))
    loader = store._get_dataloader()
    assert [batch.shape for (batch,) in loader] == [(15, 8)], "half of the 30 texts that were left"
    with pytest.raises(DataExhausted):
        store.get_batch_tokens()


def test_empty_texts_are_skipped_and_duplicates_served(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": text} for text in ["a", None, " ", "a", "b"]]
    store = ActivationsStoreSBERT(HashModel(), mapping(tmp_path, rows))
    assert sum(map(len, serve_all(store))) == 3
    assert store.counts.empty == 2


def test_a_mapping_holds_texts_out_when_asked(tmp_path: Path) -> None:
    texts, model = sentences(200), HashModel()
    store = ActivationsStoreSBERT(model, mapping(tmp_path, texts, holdout=0.3))
    test = [text for text in texts if hash_text(text) < threshold(0.2)]
    validation = [text for text in texts if threshold(0.2) <= hash_text(text) < threshold(0.3)]
    assert torch.equal(torch.cat(list(store.test(7))), model.encode(test))
    assert torch.equal(torch.cat(list(store.validation(7))), model.encode(validation))
    assert sum(map(len, serve_all(store))) == store.num_train == 200 - len(test) - len(validation)
    assert (store.num_validation, store.num_test) == (len(validation), len(test))


def test_the_seed_of_the_store_decides_and_the_global_generator_does_not(tmp_path: Path) -> None:
    def first(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        return ActivationsStoreSBERT(HashModel(), mapping(tmp_path, sentences(100), seed=seed)).next_batch()

    assert torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))
    state = torch.random.get_rng_state()
    first(0, 1)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    ActivationsStoreSBERT(HashModel(), mapping(tmp_path, sentences(100))).next_batch()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.random.set_rng_state(state)


def test_rows_mix_across_refills(tmp_path: Path) -> None:
    """A buffer holds 32 rows; what is served first holds rows of the first buffer only, later pools of two."""
    texts, model = sentences(200), HashModel()
    place = {tuple(row): i for i, row in enumerate(model.encode(texts).tolist())}
    store = ActivationsStoreSBERT(model, mapping(tmp_path, texts))
    served = [place[tuple(row)] // 32 for batch in serve_all(store) for row in batch.tolist()]
    assert set(served[:16]) == {0}
    assert set(served[16:48]) == {0, 1}
    assert all(served[i] <= i // 32 + 1 for i in range(200)), "no row waits longer than one buffer"


@pytest.mark.parametrize("missing", ["dataset_path", "batch_size"])
def test_a_missing_key_is_named(tmp_path: Path, missing: str) -> None:
    cfg = mapping(tmp_path, ["a"])
    del cfg[missing]
    with pytest.raises(DataError, match=f"cfg: {missing}: missing"):
        ActivationsStoreSBERT(HashModel(), cfg)


def test_an_error_of_the_model_is_not_hidden(tmp_path: Path) -> None:
    """The seed took any AttributeError for the end of the data."""

    class Broken(HashModel):
        def encode(self, *_: Any, **__: Any) -> Tensor:
            raise AttributeError("no such layer")

    with pytest.raises(AttributeError, match="no such layer"):
        ActivationsStoreSBERT(Broken(), mapping(tmp_path, ["a"])).next_batch()


def test_a_real_sentence_transformer(tmp_path: Path, static_model: str) -> None:
    from sentence_transformers import SentenceTransformer

    sbert, texts = SentenceTransformer(static_model, device="cpu"), sentences(40)
    store = ActivationsStoreSBERT(model=sbert, cfg=mapping(tmp_path, texts))
    assert rows_set(torch.cat(serve_all(store))) == rows_set(torch.from_numpy(sbert.encode(texts)))


# --- a typed configuration, three ways -------------------------------------------------------------------------------


@pytest.fixture(params=["cached", "streamed"])
def opened(request: pytest.FixtureRequest, corpus: Corpus, cache_dir: Path, inline: HashModel) -> Callable[..., Any]:
    """Open a store over 300 texts, out of the cache or from the stream."""

    def make(seed: int = 0, batch_size: int = 32, **changes: Any) -> ActivationsStoreSBERT:
        changes = {"dataset": {"label_column": "label"}, "encode_batch_size": 2, **changes}
        data = corpus(sentences(300), cache=request.param == "cached", **changes)
        return open_store(data, batch_size=batch_size, seed=seed, device="cpu", cache_dir=cache_dir)

    make.model = inline  # type: ignore[attr-defined]
    return make


def test_an_epoch_is_every_training_row_once_and_epochs_differ(opened: Callable[..., Any]) -> None:
    store = opened(batch_size=30)
    texts = [text for text in sentences(300) if hash_text(text) >= threshold(0.1)]
    everything = rows_set(opened.model.encode(texts))  # type: ignore[attr-defined]
    assert (store.num_train, store.num_validation + store.num_test, store.d_in) == (len(texts), 300 - len(texts), 8)
    rows = torch.cat([store.next_batch() for _ in range(40)])
    epochs = [rows[i * len(texts) : (i + 1) * len(texts)] for i in range(3)]
    assert len(texts) % 30, "batches cross the ends of epochs"
    for epoch in epochs:
        assert rows_set(epoch) == everything
    assert not torch.equal(epochs[0], epochs[1])


def test_batches_depend_on_the_seed_and_on_nothing_else(opened: Callable[..., Any]) -> None:
    one, two, other = opened(seed=5), opened(seed=5), opened(seed=6)
    list(two.test())  # reading in between changes nothing
    two.sample(10)
    for _ in range(25):
        batch = one.next_batch()
        assert torch.equal(batch, two.next_batch())
        assert not torch.equal(batch, other.next_batch())


@pytest.mark.parametrize("taken", [0, 1, 2, 5, 9, 10, 28])
def test_resuming_is_exact(opened: Callable[..., Any], taken: int) -> None:
    store = opened()
    for _ in range(taken):
        store.next_batch()
    state = json.loads(json.dumps(store.state_dict()))
    ahead = [store.next_batch() for _ in range(15)]
    again = opened()
    again.next_batch()
    again.load_state_dict(state)
    assert again.examples_used == taken * 32
    for batch in ahead:
        assert torch.equal(again.next_batch(), batch)


PLACES = torch.tensor([0, 1, 7, 40, 99])
"""Of the sample of 100 rows, the first and the last among them."""


@pytest.mark.parametrize("before", [0, 1, 9, 13])
def test_rows_set_aside_are_never_served_and_all_others_are(opened: Callable[..., Any], before: int) -> None:
    """However many batches were served before, whole epochs among them."""
    store = opened()
    held = {tuple(row) for row in store.sample(100)[PLACES].tolist()}
    everything = {tuple(row) for row in store.sample(1000).tolist()}
    assert held < everything
    for _ in range(before):
        store.next_batch()
    store.set_aside(100, PLACES)
    served = [store.next_batch() for _ in range(40)]
    assert {len(batch) for batch in served} == {32}
    assert {tuple(row) for row in torch.cat(served).tolist()} == everything - held
    assert len(store.sample(100)) == 100, "they are sampled as before"


@pytest.mark.parametrize("taken", [0, 1, 5, 9, 28])
def test_resuming_with_rows_set_aside_is_exact(opened: Callable[..., Any], taken: int) -> None:
    """In whichever order the two are told the new store."""
    store = opened()
    store.set_aside(100, PLACES)
    for _ in range(taken):
        store.next_batch()
    state = json.loads(json.dumps(store.state_dict()))
    ahead = [store.next_batch() for _ in range(15)]
    for first in ("aside", "state"):
        again = opened()
        again.next_batch()
        if first == "state":
            again.load_state_dict(state)
        again.set_aside(100, PLACES)
        if first == "aside":
            again.load_state_dict(state)
        assert all(torch.equal(again.next_batch(), batch) for batch in ahead)


def test_a_store_that_has_no_other_rows_serves_those_set_aside(opened: Callable[..., Any]) -> None:
    store = opened()
    everything = rows_set(store.sample(1000))
    store.set_aside(1000, torch.arange(store.num_train))
    assert set(rows_set(torch.cat([store.next_batch() for _ in range(40)]))) == set(everything)


def test_an_sae_is_never_trained_on_the_rows_it_is_calibrated_with(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    training = Training.start(TopKConfig(k=2, dict_size=16), TrainConfig(samples=1500, batch_size=32), 0, store)
    trained, loss = list[Tensor](), training.sae.loss
    monkeypatch.setattr(training.sae, "loss", lambda x, moment: trained.append(x) or loss(x, moment))
    assert list(train(training, store))
    held = set(rows_set(training.calibration))
    assert len(held) == store.num_train // 5
    assert set(rows_set(torch.cat(trained))) == set(rows_set(store.sample(1000))) - held


def test_texts_beside_the_batches_go_on_where_they_were(opened: Callable[..., Any]) -> None:
    texts = [text for text in sentences(300) if hash_text(text) >= threshold(0.1)]
    lowest = sorted(texts, key=hash_text)[:100]
    store, aside = opened(), {text for text in texts if text in lowest}
    assert store.get_batch_tokens() == texts[:2]
    store.set_aside(100, torch.arange(100))
    seen = [text for _ in range(20) for text in store.get_batch_tokens()]
    if store.entry is not None:  # these are not what is served
        assert seen == texts[2:42]
        return
    assert not aside & set(seen)
    assert [text for text in seen if seen.count(text) == 1 or text in texts[2:42]] == seen
    assert all(new == old for new, old in zip(seen, texts[2:42], strict=True) if old not in aside)


def test_a_state_of_other_settings_is_refused(opened: Callable[..., Any]) -> None:
    state = opened(seed=1).state_dict()
    with pytest.raises(DataError, match=r"saved position: seed: 1, but this store has 0"):
        opened().load_state_dict(state)


def test_sample_is_a_function_of_the_data_only(opened: Callable[..., Any]) -> None:
    texts = [text for text in sentences(300) if hash_text(text) >= threshold(0.1)]
    lowest = sorted(texts, key=hash_text)[:20]
    in_order = [text for text in texts if text in lowest]
    for seed in (0, 1):
        store = opened(seed=seed)
        store.next_batch()
        assert torch.equal(store.sample(20), opened.model.encode(in_order))  # type: ignore[attr-defined]
        assert store.train_labels(20) == [len(text) for text in in_order]
        assert len(store.sample(10_000)) == store.num_train


def test_a_part_comes_in_the_order_of_the_stream_with_its_labels(opened: Callable[..., Any]) -> None:
    division = Division(0.1 / 3, 0.2 / 3)
    for part in ("validation", "test"):
        held = [text for text in sentences(300) if division.part(hash_text(text)) == part]
        store = opened()
        batches = list(getattr(store, part)(7))
        assert [len(batch) for batch in batches[:-1]] == [7] * (len(batches) - 1)
        assert torch.equal(torch.cat(batches), opened.model.encode(held))  # type: ignore[attr-defined]
        assert getattr(store, f"{part}_labels")() == [len(text) for text in held]


def test_without_a_label_column_there_are_no_labels(opened: Callable[..., Any]) -> None:
    store = opened(dataset={})
    assert store.test_labels() is None
    assert store.train_labels(5) is None


def test_the_texts_can_be_read_beside_the_batches(opened: Callable[..., Any]) -> None:
    texts = [text for text in sentences(300) if hash_text(text) >= threshold(0.1)]
    store = opened()
    assert store.get_batch_tokens() == texts[:2]
    assert torch.equal(store.get_activations(texts[:2]), opened.model.encode(texts[:2]))  # type: ignore[attr-defined]


def test_both_ways_serve_the_same_texts(corpus: Corpus, cache_dir: Path, inline: HashModel) -> None:  # noqa: ARG001
    texts = [*sentences(150), *sentences(150)[:50], "  ", *sentences(100, seed=1)]
    stores = [
        open_store(corpus(texts, cache=way), batch_size=64, seed=0, device="cpu", cache_dir=cache_dir)
        for way in (True, False)
    ]
    assert stores[0].num_train == stores[1].num_train
    assert torch.equal(stores[0].sample(50), stores[1].sample(50))
    assert torch.equal(*[torch.cat(list(store.test())) for store in stores])
    assert torch.equal(*[torch.cat(list(store.validation())) for store in stores])


# --- out of the cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("small_pieces")
def test_batches_out_of_many_shards_are_the_permutation_read_by_brute_force(
    corpus: Corpus, cache_dir: Path, inline: HashModel, dtype: str
) -> None:
    """Shards of 64 rows; expected: rows of the training texts, permuted by PCG64([seed, epoch]); inside a batch, each
    epoch's rows ascend."""
    data = corpus(sentences(300), dtype=dtype)
    store = open_store(data, batch_size=100, seed=7, device="cpu", cache_dir=cache_dir)
    texts = [text for text in sentences(300) if hash_text(text) >= threshold(0.1)]
    rows = inline.encode(texts).to(getattr(torch, dtype)).float()
    epochs = [np.random.Generator(np.random.PCG64([7, e])).permutation(len(texts)) for e in range(4)]
    order = np.concatenate(epochs)
    which = np.repeat(range(4), len(texts))
    for start in range(0, 900, 100):
        places = np.arange(start, start + 100)
        expected = rows[torch.from_numpy(order[places[np.lexsort((order[places], which[places]))]])]
        assert torch.equal(store.next_batch(), expected)


def test_a_complete_entry_is_served_without_a_model(
    corpus: Corpus, cache_dir: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = corpus(sentences(100))
    cache.build(data, cache_dir)
    seen = len(inline.seen)
    monkeypatch.setattr("saebench.stores.sentence_encoder._load", lambda *_: pytest.fail("the model was loaded"))
    store = open_store(data, batch_size=16, seed=0, device="cpu", cache_dir=cache_dir)
    store.next_batch(), store.sample(4), list(store.test())
    assert len(inline.seen) == seen


@pytest.mark.usefixtures("inline")
def test_an_open_store_outlives_the_growth_of_its_entry(corpus: Corpus, cache_dir: Path) -> None:
    texts, changes = sentences(200), {"dataset": {"label_column": "label"}}
    small = corpus(texts, num_examples=80, **changes)
    store = open_store(small, batch_size=16, seed=0, device="cpu", cache_dir=cache_dir)
    twin = open_store(small, batch_size=16, seed=0, device="cpu", cache_dir=cache_dir)
    expected = [twin.next_batch() for _ in range(10)]
    labels = twin.test_labels()
    cache.build(corpus(texts, **changes), cache_dir)
    assert all(torch.equal(store.next_batch(), batch) for batch in expected)
    assert store.test_labels() == labels
    reopened = open_store(small, batch_size=16, seed=0, device="cpu", cache_dir=cache_dir)
    assert all(torch.equal(reopened.next_batch(), batch) for batch in expected)


@pytest.mark.usefixtures("inline", "small_pieces")
def test_an_open_store_outlives_any_number_of_growths_and_a_repair(corpus: Corpus, cache_dir: Path) -> None:
    """It reads hashes at its first batch and labels at the end, by name."""
    texts, changes = sentences(200), {"dataset": {"label_column": "label"}}
    small = corpus(texts, num_examples=70, **changes)
    store = open_store(small, batch_size=16, seed=0, device="cpu", cache_dir=cache_dir)
    assert store.entry is not None
    folder = store.entry.directory
    for count in (80, 90, 100):
        cache.build(corpus(texts, num_examples=count, **changes), cache_dir)
    next(folder.glob("00001-rows-*")).write_bytes(b"")
    cache.build(corpus(texts, num_examples=100, **changes), cache_dir)
    assert len(store.next_batch()) == 16
    assert store.test_labels() == [len(text) for text in texts[:70] if hash_text(text) < threshold(0.2 / 3)]
    del store
    assert {why for _, _, why in tidy.gc(cache_dir)} == {"left over"}
    found = cache.find(corpus(texts, num_examples=100, **changes), cache_dir)
    assert found is not None
    assert {path.name for path in folder.iterdir()} == found.manifest.names()


@pytest.mark.usefixtures("inline")
def test_a_stream_without_texts_is_one_line(corpus: Corpus) -> None:
    store = ActivationsStoreSBERT(None, corpus([" "], cache=False), batch_size=4, device="cpu")
    with pytest.raises(DataError, match=r"data\.dataset: no text to train on"):
        store.next_batch()


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("cached", [True, False])
def test_a_corpus_smaller_than_a_batch_is_refused(corpus: Corpus, cache_dir: Path, cached: bool) -> None:
    with pytest.raises(DataError, match=r"\d training texts do not fill one batch of 64"):
        open_store(corpus(sentences(10), cache=cached), batch_size=64, seed=0, device="cpu", cache_dir=cache_dir)


@pytest.mark.usefixtures("inline")
def test_an_entry_named_by_its_key_is_served_whatever_became_of_the_texts(corpus: Corpus, cache_dir: Path) -> None:
    """So that a file which changes in the course of a sweep does not split its trials between two corpora."""
    data = corpus(sentences(300))
    key = cache.build(data, cache_dir).cache_key
    settings = {"batch_size": 64, "seed": 7, "device": "cpu", "cache_dir": cache_dir}
    first = open_store(data, **settings, cache_key=key).next_batch()
    path = Path(str(data.dataset.data_files))
    path.write_bytes(path.read_bytes().replace(b"a", b"o"))
    assert torch.equal(open_store(data, **settings, cache_key=key).next_batch(), first)
    path.unlink()
    assert torch.equal(open_store(data, **settings, cache_key=key).next_batch(), first)


@pytest.mark.usefixtures("inline")
def test_a_named_entry_that_is_gone_is_built_again_from_the_same_texts_alone(corpus: Corpus, cache_dir: Path) -> None:
    data = corpus(sentences(300))
    key = cache.build(data, cache_dir).cache_key
    settings = {"batch_size": 64, "seed": 7, "device": "cpu", "cache_dir": cache_dir, "cache_key": key}
    shutil.rmtree(cache_dir)
    assert open_store(data, **settings).entry.cache_key == key
    shutil.rmtree(cache_dir)
    path = Path(str(data.dataset.data_files))
    path.write_bytes(path.read_bytes().replace(b"a", b"o"))
    with pytest.raises(
        DataError, match=f"embeddings {key} are missing, and the texts or the model have changed since: restore"
    ):
        open_store(data, **settings)
    assert not list(cache_dir.glob("embeddings/*/manifest.json")), "nothing is encoded in vain"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("fraction", [0.25, 0.0], ids=["resident", "pinned"])
@pytest.mark.usefixtures("inline")
def test_a_gpu_gets_the_same_batches(
    corpus: Corpus, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    monkeypatch.setattr("saebench.stores.rows.RESIDENT_FRACTION", fraction)
    data = corpus(sentences(300))
    on_cpu = open_store(data, batch_size=100, seed=7, device="cpu", cache_dir=cache_dir)
    on_gpu = open_store(data, batch_size=100, seed=7, device="cuda:0", cache_dir=cache_dir)
    for _ in range(12):
        assert torch.equal(on_gpu.next_batch().cpu(), on_cpu.next_batch())
    assert torch.equal(torch.cat(list(on_gpu.test(7))).cpu(), torch.cat(list(on_cpu.test(7))))
    assert torch.equal(on_gpu.sample(50).cpu(), on_cpu.sample(50))
    state = on_gpu.state_dict()
    ahead = list(islice(iter(on_gpu.next_batch, None), 3))
    on_gpu.load_state_dict(state)
    assert all(torch.equal(on_gpu.next_batch(), batch) for batch in ahead)
    on_cpu.load_state_dict(on_gpu.state_dict())
    for store in (on_cpu, on_gpu):
        store.set_aside(100, PLACES)
    for _ in range(12):
        assert torch.equal(on_gpu.next_batch().cpu(), on_cpu.next_batch())


# --- a GPU, faked: that its paths are taken and serve the same rows ---------------------------------------------------


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Tensors that are sent to "cuda" stay here. Counts what was made in pinned memory, on the GPU, and sent there, and
    how often one stream waited for another."""
    counts: Counter[str] = Counter()

    class Stream:
        def __init__(self, _: Any = None) -> None: ...

        def record_event(self) -> int:
            return counts["sent, not waiting"]

        def wait_event(self, event: int) -> None:
            counts["waited for"] = event

    here = Stream()
    to, empty = torch.Tensor.to, torch.empty

    def fake_to(self: Tensor, *args: Any, **options: Any) -> Tensor:
        device = args[0] if args else options.get("device")
        if isinstance(device, torch.device) and device.type == "cuda":
            counts["sent, not waiting" if options.get("non_blocking") else "sent"] += len(self)
            return to(self, *args[1:], copy=True)
        return to(self, *args, **options)

    def fake_empty(*size: Any, pin_memory: bool = False, device: Any = None, **options: Any) -> Tensor:
        counts["pinned"] += pin_memory
        counts["on the GPU"] += device is not None and torch.device(device).type == "cuda"
        return empty(*size, **options)

    monkeypatch.setattr(torch.Tensor, "to", fake_to)
    monkeypatch.setattr(torch, "empty", fake_empty)

    def record_stream(self: Tensor, stream: Any) -> None:
        assert stream is here
        counts["kept for it"] += len(self)

    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (38_400, 1_000_000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0, raising=False)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: here)
    return counts


@pytest.mark.parametrize(("share", "resident"), [(0.03, False), (0.04, True), (None, True)])
@pytest.mark.usefixtures("inline", "fake_gpu")
def test_a_trial_that_shares_a_gpu_keeps_no_rows_there_that_its_share_does_not_hold(
    corpus: Corpus, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, share: float | None, resident: bool
) -> None:
    """9,600 bytes of rows; a quarter of a share of 0.03 or 0.04 of 1,000,000 is 7,500 or 10,000."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (900_000, 1_000_000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: share)
    if share is None:  # an older torch
        monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction")
    entry = cache.build(corpus(sentences(300)), cache_dir)
    assert (CachedRows(entry, 100, 7, "cuda")._resident is not None) == resident


@pytest.mark.parametrize(("fraction", "resident"), [(0.25, False), (0.26, True)])
@pytest.mark.usefixtures("inline")
def test_rows_stay_on_the_gpu_where_they_fit_and_come_through_pinned_memory_where_not(
    corpus: Corpus,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_gpu: Counter[str],
    fraction: float,
    resident: bool,
) -> None:
    """300 rows of 8 float32 are 9,600 bytes: a quarter of the 38,400 that are free, and it has to be less than that."""
    monkeypatch.setattr("saebench.stores.rows.RESIDENT_FRACTION", fraction)
    data = corpus(sentences(300))
    on_cpu, on_gpu = (
        open_store(data, batch_size=100, seed=7, device=device, cache_dir=cache_dir) for device in ("cpu", "cuda")
    )
    assert fake_gpu["on the GPU"] == (3 if resident else 0), "training, validation and test"
    assert fake_gpu["sent"] == (300 if resident else 0)
    before = fake_gpu.copy()
    for served in range(1, 13):
        assert torch.equal(on_gpu.next_batch(), on_cpu.next_batch())
        if not resident:
            assert fake_gpu["waited for"] == fake_gpu["kept for it"] == 100 * served, "the batch, not the one behind it"
    assert torch.equal(torch.cat(list(on_gpu.test(7))), torch.cat(list(on_cpu.test(7))))
    spent = fake_gpu - before
    if resident:
        assert spent["pinned"] == spent["sent, not waiting"] == 0
        assert spent["sent"] == -(-1_200 // on_gpu.num_train) * on_gpu.num_train, "the order of each epoch, once"
    else:
        assert spent["sent, not waiting"] == 1_300, "the next one is on its way"
        assert 12 <= spent["pinned"] <= 12 + 2 + PREFETCH, "and a few that wait"
    state = on_gpu.state_dict()
    ahead = [on_gpu.next_batch() for _ in range(3)]
    on_gpu.load_state_dict(state)
    assert all(torch.equal(on_gpu.next_batch(), batch) for batch in ahead), "what was prefetched is thrown away"
    held = set(rows_set(on_cpu.sample(100)[PLACES]))
    on_cpu.load_state_dict(on_gpu.state_dict())
    for store in (on_cpu, on_gpu):
        store.set_aside(100, PLACES)
    for _ in range(12):
        batch = on_gpu.next_batch()
        assert torch.equal(batch, on_cpu.next_batch()), "neither the order nor what was prefetched is an old one"
        assert not held & set(rows_set(batch))


# --- what `datasets` is asked for ------------------------------------------------------------------------------------


def test_the_four_keys_reach_datasets_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset_builder(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return plain(*args, **options)

    plain = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    for name, texts in (("one", sentences(20)), ("other", ["a"])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text", *texts]))
    files = {"validation": str(tmp_path / "one.csv"), "train": str(tmp_path / "other.csv")}
    cfg = {**mapping(tmp_path, ["b"]), "dataset_path": "csv", "data_files": files}
    store = ActivationsStoreSBERT(HashModel(), {**cfg, "split": "validation"})
    assert len(store.next_batch()) == 16
    [(args, options)] = asked
    assert (args, options["data_files"]) == (("csv", None), {"validation": [files["validation"]]})
    with pytest.raises(DataError, match=r"other\.csv \[train\]: text_column: body: no such column"):
        ActivationsStoreSBERT(HashModel(), {**cfg, "text_column": "body"}).next_batch()


@pytest.mark.parametrize("key", ["num_examples", "model_batch_size", "num_batches_in_buffer", "batch_size"])
def test_sizes_of_a_mapping_are_above_zero(tmp_path: Path, key: str) -> None:
    for bad in (0, 2.5, "many", None, True):
        with pytest.raises(ValueError, match=f"cfg: {key}: {bad!r}: must be a whole number above 0"):
            ActivationsStoreSBERT(HashModel(), mapping(tmp_path, ["a"], **{key: bad}))
    for good in (1e5, np.int64(3)):
        ActivationsStoreSBERT(HashModel(), mapping(tmp_path, ["a"], **{key: good}))


@pytest.mark.parametrize("way", ["mapping", "cached", "streamed"])
def test_texts_are_encoded_as_those_of_the_dataset_are(
    tmp_path: Path, corpus: Corpus, cache_dir: Path, inline: HashModel, way: str
) -> None:
    """One text gave a row per letter, an empty list a traceback, and spaces other rows than the sweep's."""
    if way == "mapping":
        store = ActivationsStoreSBERT(inline, mapping(tmp_path, ["a", "b"]))
    else:
        data = corpus(sentences(60), cache=way == "cached")
        store = open_store(data, batch_size=8, seed=0, device="cpu", cache_dir=cache_dir)
    assert torch.equal(store.get_activations("An owl."), inline.encode(["An owl."]))
    assert torch.equal(store.get_activations([" An\n owl. ", "\ud800"]), inline.encode(["An owl.", "?"]))
    assert store.get_activations([]).shape == (0, 8)
    for bad in ([None], [3], ["a", b"b"]):
        with pytest.raises(DataError, match=r"^texts\[\d\]: .*: must be text"):
            store.get_activations(bad)  # type: ignore[arg-type]


def test_cleaning_can_be_switched_off(corpus: Corpus, cache_dir: Path, inline: HashModel) -> None:
    texts = [f"def f():\n    return {i}\n" for i in range(60)]
    plain = corpus(texts, dataset={"label_column": "label"})
    asis = plain.model_copy(update={"clean": "none"})
    entries = [cache.build(data, cache_dir) for data in (plain, asis)]
    assert entries[0].cache_key != entries[1].cache_key
    assert [text.text for text in entries[1].texts()] == texts
    assert [text.text for text in entries[0].texts()] == [" ".join(text.split()) for text in texts]
    store = open_store(asis, batch_size=8, seed=0, device="cpu", cache_dir=cache_dir)
    held = [texts[i] for i in entries[1].test_index]
    assert torch.equal(store.get_activations(held), torch.cat(list(store.test())))
    assert torch.equal(store.get_activations(held), inline.encode(held))


@pytest.mark.parametrize("way", [True, False])
def test_rows_are_float32_whatever_the_default_is(
    corpus: Corpus,
    cache_dir: Path,
    inline: HashModel,  # noqa: ARG001
    way: bool,
) -> None:
    data = corpus(sentences(80), cache=way)
    cache.build(data, cache_dir)
    expected = open_store(data, batch_size=16, seed=0, device="cpu", cache_dir=cache_dir)
    torch.set_default_dtype(torch.bfloat16)
    try:
        store = open_store(data, batch_size=16, seed=0, device="cpu", cache_dir=cache_dir)
        for _ in range(6):
            batch = store.next_batch()
            assert batch.dtype == torch.float32
            assert torch.equal(batch, expected.next_batch())
        assert store.sample(5).dtype == next(store.test()).dtype == torch.float32
        assert store.get_activations([]).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("inline")
def test_a_part_that_got_no_text_is_one_line(corpus: Corpus, cache_dir: Path) -> None:
    """Shares are shares of hashes: of these three texts none is tested on."""
    texts = [text for text in sentences(40) if hash_text(text) >= threshold(0.2 / 3)][:3]
    data = corpus(texts)
    entry = cache.build(data, cache_dir)
    rule = (
        r"^data\.holdout: the (validation|test) part is empty: 0\.\d+ of 3 texts, chosen by their hash; give more texts"
    )
    with pytest.raises(DataError, match=rule):
        entry.check(data)
    streamed = data.model_copy(update={"cache": False})
    with pytest.raises(DataError, match=rule):
        open_store(streamed, batch_size=1, seed=0, device="cpu", cache_dir=cache_dir)


def test_a_model_that_gives_every_text_the_same_row_is_one_line(
    corpus: Corpus, cache_dir: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline, "row", lambda _: torch.ones(8))
    data = corpus(sentences(100))
    with pytest.raises(DataError, match=r"^model hash-model: the first \d+ of \d+ train texts have the same embedding"):
        cache.build(data, cache_dir).check(data)


@pytest.mark.parametrize("share", [1.0, 1.5, -0.1, float("nan")])
def test_the_hold_out_of_a_mapping_is_a_share(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match=f"cfg: holdout: {share}: must be at least 0 and less than 1"):
        ActivationsStoreSBERT(HashModel(), mapping(tmp_path, ["a"], holdout=share))


def test_a_model_that_gives_nan_is_not_served(tmp_path: Path) -> None:
    store = ActivationsStoreSBERT(HashModel(), mapping(tmp_path, ["a", "b nan", "c"]))
    with pytest.raises(
        DataError, match="the model gives NaN or infinity for one of 3 texts, the first of which is 'a'"
    ):
        store.next_batch()
