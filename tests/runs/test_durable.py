"""A file or folder is written whole or not at all, and never through a link that somebody planted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from saebench.runs import durable
from saebench.runs.durable import new_folder, remove_temporary, replacing, write_json, write_text


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a", [1])
    with pytest.raises(TypeError), replacing(tmp_path / "a") as new:
        new.file.write("half")  # type: ignore[arg-type]
    assert (tmp_path / "a").read_text() == "[\n 1\n]\n"
    assert names(tmp_path) == ["a"]


def test_a_planted_link_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name cannot be guessed; and somebody who guessed it gets an error, not the content of the victim's file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(durable.secrets, "token_hex", lambda _: "0123abcd")
    (tmp_path / ".a.0123abcd.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a", "new")
    assert victim.read_text() == "precious"


def test_two_writes_have_two_temporary_names(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        assert one.file.name != other.file.name
        assert all(Path(new.file.name).match(durable.TEMPORARY) for new in (one, other))


def test_the_link_at_the_place_itself_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a").symlink_to(victim)
    write_text(tmp_path / "a", "new")
    assert (victim.read_text(), (tmp_path / "a").read_text()) == ("precious", "new")


def test_the_name_may_come_from_the_content(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as new:
        new.file.write(b"xyz")
        new.target = tmp_path / "a-xyz"
    assert names(tmp_path) == ["a-xyz"]


def test_file_and_folder_are_synced_and_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    write_text(tmp_path / "a", "x", durable=False)
    assert synced == []
    write_text(tmp_path / "a", "x")
    assert [Path(path).name.split(".")[1:2] or path for path in synced] == [["a"], str(tmp_path)]
    synced.clear()
    with new_folder(tmp_path / "b") as folder:
        (folder / "inside").write_text("x")
    assert Path(synced[0]).name == "inside"
    assert synced[-1] == str(tmp_path)


@pytest.mark.parametrize("fail", [full, None])
def test_a_folder_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[int], None] | None
) -> None:
    if fail is None:
        with new_folder(tmp_path / "b") as folder:
            (folder / "inside").write_text("x")
        assert (tmp_path / "b" / "inside").read_text() == "x"
        return
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"), new_folder(tmp_path / "b") as folder:
        (folder / "inside").write_text("x")
    assert names(tmp_path) == []


def test_left_over_files_links_and_folders_are_removed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    (tmp_path / ".a.01.tmp").write_text("{")
    (tmp_path / ".b.02.tmp").mkdir()
    (tmp_path / ".b.02.tmp" / "inside").write_text("x")
    (tmp_path / ".c.03.tmp").symlink_to(victim)
    remove_temporary(tmp_path)
    assert names(tmp_path) == ["victim"]
    assert (victim / "file").read_text() == "precious"
