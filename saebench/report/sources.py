"""Find sweeps and their records: by names, directories and tracking servers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saebench.errors import UserError
from saebench.runs.paths import SweepPaths, TrialPaths, runs_dir
from saebench.runs.secrets import mask
from saebench.runs.tags import Tag
from saebench.tracking.address import moved_database, sqlite_file, sqlite_uri, unmasked
from saebench.tracking.mlflow_errors import reading
from saebench.tracking.server import open_reader


@dataclass(frozen=True)
class Source:
    """One sweep: its parent run in MLflow, and its directory if it is on this machine."""

    name: str
    uri: str
    experiment_id: str
    run_id: str
    paths: SweepPaths | None = None
    lock: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the parent run, if the sweep was found on a server."""

    def search(self, key: str, default: str) -> str:
        """A key of the spec's `search` section: from the lock, else from the parent run."""
        spec = self.lock.get("spec")
        section = (spec if isinstance(spec, dict) else self.lock).get("search")
        locked = section.get(key) if isinstance(section, dict) else None
        return str(locked or self.tags.get(f"saebench.{key}") or default)

    def eval(self, key: str) -> Any:
        """A key of the spec's `eval` section: from the lock, else from the parent run; None if unknown."""
        spec = self.lock.get("spec")
        section = spec.get("eval") if isinstance(spec, dict) else None
        if isinstance(section, dict) and key in section:
            return section[key]
        try:
            return json.loads(self.tags.get(f"saebench.{key}", "null"))
        except ValueError:
            return None


def find(sweeps: Sequence[str | Path], runs: str | Path | None = None, tracking_uri: str | None = None) -> list[Source]:
    """The sweeps named by directory or name; none named: the newest. Raises UserError that lists the existing ones."""
    folder = runs_dir(runs)
    if tracking_uri:
        return _on_server(sweeps, folder, tracking_uri)
    if not sweeps:
        return [_local(_newest(folder))]
    return [_named(str(sweep), folder) for sweep in sweeps]


def local_sweeps(folder: Path) -> list[Path]:
    """Return the sweep directories in `folder`, the one that changed last at the end."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _files(SweepPaths(p))), key=lambda p: _last_change(SweepPaths(p)))


def _files(paths: SweepPaths) -> list[Path]:
    return [p for p in (paths.tracking, paths.lock, paths.spec) if p.is_file()]


def _last_change(paths: SweepPaths) -> float:
    return max(p.stat().st_mtime for p in (*_files(paths), paths.journal, paths.log) if p.is_file())


def _newest(folder: Path) -> Path:
    found = local_sweeps(folder)
    if not found:
        raise UserError(f"{folder}: no sweeps here; name one, or give its place with --runs-dir or --tracking-uri")
    return found[-1]


def _named(sweep: str, folder: Path) -> Source:
    for path in (Path(sweep), folder / sweep):
        if path.is_dir() and _files(SweepPaths(path.absolute())):
            return _local(path.absolute())
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return _on_server([sweep], folder, uri)[0]
    raise UserError(f"{sweep}: no such sweep in {folder}; {_those(p.name for p in local_sweeps(folder))}")


def _those(names: Iterator[str] | Sequence[str]) -> str:
    names = sorted(set(names))
    return f"there are: {', '.join(names)}" if names else "there are no sweeps"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _local(root: Path) -> Source:
    paths = SweepPaths(root)
    lock = _read_json(paths.lock)
    for record in (_read_json(paths.tracking), lock):
        found = record.get("tracking") if isinstance(record.get("tracking"), dict) else record
        if isinstance(found, dict) and {"uri", "experiment_id", "run_id"} <= found.keys():
            name = str(lock.get("name") or root.name)
            run_id = str(found["run_id"])
            uri = _present(unmasked(str(found["uri"])), root, run_id)
            return Source(name, uri, str(found["experiment_id"]), run_id, paths, lock)
    raise UserError(f"{root}: neither tracking.json nor lock.json names an MLflow run: the sweep has not started yet")


def _present(uri: str, root: Path, run_id: str) -> str:
    """The same address, or the new one of a database that was moved together with the sweep's directory."""
    file = sqlite_file(uri)
    if file is None or file.exists():
        return uri
    moved = moved_database(file, root, run_id)
    return sqlite_uri(moved) if moved else uri


def directory_of(run_id: str, tags: Mapping[str, str], folder: Path) -> TrialPaths | None:
    """The directory of the trial whose run this is, if its sweep is in `folder`."""
    sweep, trial = tags.get(Tag.SWEEP), tags.get(Tag.TRIAL, "")
    if not sweep or not (trial.isascii() and trial.isdigit()):
        return None
    paths = SweepPaths((folder / sweep).absolute())
    known = _run_ids(paths).get(int(trial))
    return paths.trial(int(trial)) if known == run_id else None


def known_runs(source: Source) -> dict[int, str]:
    """Trial -> run id, as the sweep's directory records them."""
    return _run_ids(source.paths) if source.paths else {}


def _run_ids(paths: SweepPaths) -> dict[int, str]:
    trials = _read_json(paths.tracking).get("trials")
    items = trials.items() if isinstance(trials, dict) else ()
    return {
        int(number): str(sent["run_id"])
        for number, sent in items
        if number.isascii() and number.isdigit() and isinstance(sent, dict) and sent.get("run_id")
    }


# --- servers ---------------------------------------------------------------------------------------------------------


def _on_server(sweeps: Sequence[str | Path], folder: Path, uri: str) -> list[Source]:
    parents = _parents(uri, [Path(s).name for s in sweeps])
    if not parents:
        there = _those([parent.name for parent in _parents(uri, [])])
        named = f"{', '.join(map(str, sweeps))}: no such sweep" if sweeps else "no sweeps"
        raise UserError(f"{named} on {mask(uri)}; {there}")
    wanted = [Path(s).name for s in sweeps] or [parents[0].name]
    newest = {parent.name: parent for parent in reversed(parents)}
    if missing := [name for name in wanted if name not in newest]:
        there = _those([parent.name for parent in _parents(uri, [])])
        raise UserError(f"{', '.join(missing)}: no such sweep on {mask(uri)}; {there}")
    return [_with_directory(newest[name], folder) for name in wanted]


def _with_directory(source: Source, folder: Path) -> Source:
    """The same with its directory, if the one of that name in `folder` is of the same run."""
    try:
        local = _local(folder / source.name)
    except UserError:
        return source
    return (
        Source(**{**vars(source), "paths": local.paths, "lock": local.lock})
        if local.run_id == source.run_id
        else source
    )


def _parents(uri: str, names: Sequence[str]) -> list[Source]:
    """The sweeps of these names, or all, that have a parent run; newest first."""
    client = open_reader(uri)
    with reading(uri):
        experiments = [e.experiment_id for e in pages(client.search_experiments)]
        found: list[Any] = []
        for name in names or [""]:
            wanted = f"tags.`{Tag.KIND}` = 'sweep'"
            wanted += f" and tags.`{Tag.SWEEP}` = '{_quoted(name)}'" if name else ""
            for start in range(0, len(experiments), 100):
                ids = experiments[start : start + 100]
                found += pages(client.search_runs, experiment_ids=ids, filter_string=wanted)
    found.sort(key=lambda run: run.info.start_time or 0, reverse=True)
    return [
        Source(r.data.tags.get(Tag.SWEEP, ""), uri, r.info.experiment_id, r.info.run_id, tags=r.data.tags)
        for r in found
    ]


def _quoted(name: str) -> str:
    if "'" in name:
        raise UserError(f"{name}: a sweep's name has no quotes")
    return name


def pages(search: Any, **query: Any) -> Iterator[Any]:
    """Every entity of a paged MLflow search."""
    token = None
    while True:
        page = search(page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return
