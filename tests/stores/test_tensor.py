"""TensorActivationStore, and the contract that every buffer keeps."""

from __future__ import annotations

import doctest
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from saebench.stores import StoreFullError, TensorActivationStore, base


def test_the_example_of_the_contract_runs() -> None:
    results = doctest.testmod(base)
    assert (results.attempted >= 6, results.failed) == (True, 0)


def test_full_is_an_index_error_with_a_default_message() -> None:
    assert issubclass(StoreFullError, IndexError)
    assert str(StoreFullError()) == "Activation store is full"
    assert str(StoreFullError("no")) == "no"


def test_two_components_of_ten_batches_are_160_examples() -> None:
    store = TensorActivationStore(160, 256, 2)
    store.fill_with_test_data(n_batches=10, batch_size=16, n_components=2, input_features=256)
    assert (len(store), store.current_activations_stored_per_component, store.n_components) == (160, [160, 160], 2)
    batches = list(DataLoader(store, batch_size=64))
    assert [batch.shape for batch in batches] == [(64, 2, 256), (64, 2, 256), (32, 2, 256)]
    assert torch.equal(torch.cat(batches), store[:])


def test_full_stores_nothing() -> None:
    store = TensorActivationStore(6, 3, 1)
    store.extend(torch.ones(4, 3), 0)
    with pytest.raises(StoreFullError):
        store.extend(torch.zeros(4, 3), 0)
    assert (len(store), store[:].min().item()) == (4, 1.0)
    store.extend(torch.zeros(2, 3), 0)
    with pytest.raises(StoreFullError):
        store.append(torch.zeros(3), 0)


def test_reading_beyond_what_is_stored_is_an_index_error_even_below_max_items() -> None:
    store = TensorActivationStore(10, 2, 2)
    store.extend(torch.arange(6.0).reshape(3, 2), 0)
    assert len(store) == 0, "component 1 has no rows"
    store.extend(torch.arange(4.0).reshape(2, 2), 1)
    assert len(list(store)) == len(store) == 2
    assert store[1].tolist() == [[2, 3], [2, 3]]
    assert store[1, 0].tolist() == [2, 3]
    assert store[-1].tolist() == store[1].tolist()
    for index in (2, 9, -3):
        with pytest.raises(IndexError):
            store[index]


def test_empty_forgets() -> None:
    store = TensorActivationStore(4, 2)
    store.extend(torch.ones(4, 2))
    store.empty()
    assert (len(store), list(store)) == (0, [])
    store.extend(torch.zeros(4, 2))
    assert len(store) == 4


def test_shuffling_keeps_components_aligned_and_follows_the_seed() -> None:
    def shuffled(seed: int) -> torch.Tensor:
        store = TensorActivationStore(60, 1, 2, seed=seed)
        store.extend(torch.arange(50.0)[:, None], 0)
        store.extend(torch.arange(60.0)[:, None] + 100, 1)
        store.shuffle()
        assert store.current_activations_stored_per_component == [50, 60]
        store.extend(torch.arange(50.0, 60.0)[:, None], 0)
        return store[:].squeeze(-1)

    rows = shuffled(0)
    assert torch.equal(rows[:, 1] - rows[:, 0], torch.full((60,), 100.0)), "partners stay partners"
    assert sorted(rows[:, 0].tolist()) == list(range(60))
    assert rows[:50, 0].tolist() != list(range(50))
    torch.manual_seed(123)
    assert torch.equal(rows, shuffled(0))
    assert not torch.equal(rows, shuffled(1))


@pytest.mark.parametrize(
    ("rows", "component", "error"),
    [(torch.zeros(2, 4), 0, ValueError), (torch.zeros(3), 0, ValueError), (torch.zeros(2, 3), 1, IndexError)],
)
def test_rows_that_do_not_fit_are_refused(rows: torch.Tensor, component: int, error: type[Exception]) -> None:
    """Nothing is broadcast into place, and no component is made up."""
    store = TensorActivationStore(5, 3, 1)
    with pytest.raises(error):
        store.extend(rows, component)
    with pytest.raises(ValueError, match=r"this store takes \(rows, 3\)"):
        store.append(torch.tensor(1.0), 0)
    assert store.current_activations_stored_per_component == [0]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, 1, 0), (1.5, 1, 1)])
def test_sizes_are_whole_numbers_above_zero(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be a whole number above 0"):
        TensorActivationStore(*sizes)


def test_type_and_size_are_what_was_asked_for() -> None:
    store = TensorActivationStore(7, 5, 3, dtype=torch.float16)
    store.extend(torch.rand(2, 5, requires_grad=True), 1)
    assert store.__sizeof__() == 7 * 5 * 3 * 2
    assert store[:].dtype == torch.float16
    assert not store[:].requires_grad


def test_workers_that_are_not_forked_read_it_and_a_copy_goes_on_as_the_original() -> None:
    store = TensorActivationStore(12, 2, seed=3)
    store.extend(torch.arange(24.0).reshape(12, 2))
    store.shuffle()
    loader = DataLoader(store, batch_size=5, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), store[:])
    copy = pickle.loads(pickle.dumps(store))
    store.shuffle()
    assert not torch.equal(copy[:], store[:])
    copy.shuffle()
    assert torch.equal(copy[:], store[:])
