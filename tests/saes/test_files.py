"""An SAE on disk: bit for bit, enough to encode, and a clear error for everything else."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import formulas
import pytest
import torch
from sae_examples import TYPES
from safetensors.torch import load_file, save_file

import saebench
from saebench.errors import UserError
from saebench.saes import NotCalibratedError, SAEFileError, load_sae, make_sae, save_sae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sae = formulas.small("batchtopk")
    sae.calibrate(formulas.cloud(64))
    return save_sae(sae, tmp_path / "sae")


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_comes_back_bit_for_bit_and_encodes(kind: str, tmp_path: Path) -> None:
    sae, x = formulas.small(kind), formulas.cloud(30)
    sae.calibrate(x)
    loaded = saebench.load_sae(save_sae(sae, tmp_path / "deep" / "sae"))
    assert type(loaded) is type(sae)
    assert loaded.config == sae.config
    ours, theirs = sae.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)
    assert torch.equal(loaded.encode(x), sae.encode(x).detach())
    assert torch.equal(loaded(x), sae(x).detach())


def test_a_folder_holds_two_files_and_no_leavings(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["sae.json", "sae.safetensors"]
    assert {"threshold", "preprocessing.shift", "W_enc"} <= load_file(folder / "sae.safetensors").keys()


def test_an_uncalibrated_sae_is_still_uncalibrated_after_loading(tmp_path: Path) -> None:
    loaded = load_sae(save_sae(formulas.small("batchtopk"), tmp_path))
    with pytest.raises(NotCalibratedError):
        loaded.encode(formulas.cloud(2))


def test_equal_saes_are_equal_files(tmp_path: Path) -> None:
    """With two keys of metadata, whose order safetensors draws anew each time, six files are the same in 3% of runs."""
    files = {
        save_sae(formulas.small("topk"), tmp_path / str(i)).joinpath("sae.safetensors").read_bytes() for i in range(6)
    }
    assert len(files) == 1


def test_saving_again_replaces(folder: Path) -> None:
    other = formulas.small("topk", seed=9)
    save_sae(other, folder)
    assert torch.equal(load_sae(folder).W_dec, other.W_dec)


@pytest.mark.parametrize("name", ["sae.json", "sae.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_sae(folder)


@pytest.mark.parametrize("name", ["sae.json", "sae.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused(folder: Path, name: str, keep: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(SAEFileError, match=name):
        load_sae(folder)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "sae.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_format_says_so(folder: Path) -> None:
    edit(folder, format_version=3, saebench="9.9")
    with pytest.raises(
        SAEFileError, match=r"format_version: 3, .* up to 2; update it \(the file was written by saebench 9\.9"
    ):
        load_sae(folder)


@pytest.mark.parametrize("text", ['{"d_in": 4}', "[1, 2]", '{"format": "other"}', "\\ud800", "null"])
def test_a_foreign_file_is_refused(folder: Path, text: str) -> None:
    (folder / "sae.json").write_text(text)
    with pytest.raises(SAEFileError, match=r"sae\.json"):
        load_sae(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"d_in": ' + 5000 * "9" + "}"])
def test_json_that_no_parser_takes_is_refused(folder: Path, text: str) -> None:
    (folder / "sae.json").write_text(text)
    with pytest.raises(SAEFileError, match=r"sae\.json: incomplete or invalid JSON"):
        load_sae(folder)


@pytest.mark.parametrize("d_in", [-1, 0, None, 8.7, "8", float("inf")])
def test_an_impossible_width_is_named(folder: Path, d_in: object) -> None:
    edit(folder, d_in=d_in)
    with pytest.raises(SAEFileError, match=r"d_in: .*, expected a whole number above 0"):
        load_sae(folder)


@pytest.mark.parametrize("d_in", [9, 10**12, 10**18, 10**30])
def test_a_width_that_is_not_the_tensors_takes_no_memory(folder: Path, d_in: int) -> None:
    edit(folder, d_in=d_in)
    with pytest.raises(SAEFileError, match=r"expected torch.float32|config: "):
        load_sae(folder)


@pytest.mark.parametrize("name", ["W_enc", "b_dec", "variance", "preprocessing.scale"])
def test_numbers_that_are_none_are_refused(folder: Path, name: str) -> None:
    path = folder / "sae.safetensors"
    for bad in (torch.nan, torch.inf):
        tensors = load_file(path)
        tensors[name].view(-1)[0] = bad
        save_file(tensors, path)
        with pytest.raises(SAEFileError, match=f"{name}: holds NaN or infinity"):
            load_sae(folder)


IMPOSSIBLE = [None, {"type": "mystery"}, {"type": "topk"}, {"type": "topk", "k": 99, "dict_size": 3}]


@pytest.mark.parametrize("config", IMPOSSIBLE)
def test_an_impossible_config_is_refused(folder: Path, config: object) -> None:
    edit(folder, config=config)
    with pytest.raises(SAEFileError, match="config"):
        load_sae(folder)


def test_a_field_of_another_version_is_named(folder: Path) -> None:
    edit(folder, config={"type": "batchtopk", "k": 3.5, "dict_size": 24, "sharpness": 2})
    with pytest.raises(SAEFileError, match=r"config\.sharpness: Extra inputs are not permitted$"):
        load_sae(folder)


def test_tensors_that_do_not_belong_are_named(folder: Path) -> None:
    path = folder / "sae.safetensors"
    whole = load_file(path)
    for change, message in [
        ({"threshold": None}, "threshold: missing"),
        ({"stranger": torch.ones(2)}, "stranger: unknown tensor"),
        ({"b_enc": torch.ones(3)}, r"b_enc: torch.float32 \(3,\), expected torch.float32 \(24,\)"),
        ({"b_enc": torch.ones(24).double()}, r"b_enc: torch.float64 \(24,\), expected"),
    ]:
        save_file({n: t for n, t in {**whole, **change}.items() if t is not None}, path)
        with pytest.raises(SAEFileError, match=message):
            load_sae(folder)


def test_the_error_is_one_a_command_line_can_print(folder: Path) -> None:
    edit(folder, format="x")
    with pytest.raises(UserError):
        load_sae(folder)
    with pytest.raises(ValueError, match="not a file that saebench wrote"):
        load_sae(folder)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_no_number(kind: str, default: torch.dtype, tmp_path: Path) -> None:
    """torch.set_default_dtype(bfloat16) in a notebook made load_sae refuse good files."""
    x = formulas.cloud(20, seed=3)
    expected = formulas.small(kind)
    expected.calibrate(x)
    save_sae(expected, tmp_path)
    torch.set_default_dtype(default)
    try:
        found = load_sae(tmp_path)
        found.calibrate(x)
        made = make_sae(expected.config, 8, x, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(t, found.state_dict()[name]) for name, t in expected.state_dict().items())
    again = make_sae(expected.config, 8, x, 0).state_dict()
    for name, tensor in made.state_dict().items():
        assert tensor.dtype == again[name].dtype
        assert torch.equal(tensor.nan_to_num(), again[name].nan_to_num()), name


@pytest.mark.parametrize("to", ["half", "bfloat16", "double"])
def test_weights_of_another_type_are_refused(to: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^W_enc is torch\.\w+: an SAE is saved in float32: sae\.float\(\)$"):
        save_sae(getattr(formulas.small("topk"), to)(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_trial_and_a_file_of_it_are_found_and_an_address_is_said_to_be_one(folder: Path) -> None:
    expected = load_sae(folder).W_dec
    assert folder.name == "sae"
    for given in (folder.parent, folder / "sae.json", str(folder / "sae.safetensors")):
        assert torch.equal(load_sae(given).W_dec, expected)
    with pytest.raises(SAEFileError, match=r"^runs:/abc/sae: an address in MLflow; load the folder that .* returns$"):
        load_sae("runs:/abc/sae")


def test_a_sweep_says_which_trials_it_has(folder: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "owls"
    shutil.copytree(folder, sweep / "trials" / "0003" / "sae")
    with pytest.raises(
        FileNotFoundError, match=r"owls: is a sweep; load one of its 1 trials, such as .*0003 \(`saebench best` "
    ):
        load_sae(sweep)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(folder: Path, device: str) -> None:
    with pytest.raises(SAEFileError, match=f"^device '{device}': .+$"):
        load_sae(folder, device)


def test_true_is_no_version(folder: Path) -> None:
    edit(folder, format_version=True)
    with pytest.raises(SAEFileError, match="format_version: True"):
        load_sae(folder)


def test_a_million_groups_are_refused_in_a_line_and_in_seconds(folder: Path) -> None:
    config = {"type": "matryoshka", "k": 3, "dict_size": 24, "groups": [1e-6] * 1_000_000}
    edit(folder, config=config)
    begin = time.process_time()
    with pytest.raises(SAEFileError, match=r"groups \[1e-06, .*, \.\.\.\] leave a level of 24 latents empty"):
        load_sae(folder)
    assert time.process_time() - begin < 20
