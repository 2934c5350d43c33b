"""The rooms of the house and the one direction in which they import (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "saebench"

LAYERS = [
    {"errors", "config", "metrics", "cores", "escape", "telemetry", "python_path", "parabola"},
    {"response"},
    {"arrays"},
    {"sweep_config", "runs", "hub"},
    {"spec"},
    {"plan"},
    {"forecast"},
    {"saes", "stores"},
    {"latents"},
    {"trial"},
    {"worker", "devices"},
    {"executors"},
    {"study", "tracking", "terminal", "compat"},
    {"report"},
    {"scheduler"},
    {"sweep"},
    {"cli"},
    {"__main__"},
]
"""From the ground up; a room imports only from rooms below it. Rooms beside each other do not meet."""
FORBIDDEN = {
    "study": {"saes", "stores", "latents", "trial", "worker"},
    "tracking": {"saes", "stores", "latents", "trial", "worker"},
    "report": {"saes", "stores", "latents", "trial", "worker", "scheduler"},
    "scheduler": {"terminal"},
    "saes": {"stores"},
    "stores": {"saes"},
}


def rooms() -> dict[str, list[Path]]:
    """Room -> its files: a module, or all modules of a folder."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(name, []).append(path)
    return found


def imported_rooms(path: Path) -> set[str]:
    """Rooms of saebench that a file names in an import, wherever in the file that stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "saebench" else [f"saebench.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("saebench.")}
    return found & set(rooms())


def height(room: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if room in layer), None)


def test_every_room_has_its_place() -> None:
    assert set(rooms()) - {"__init__"} <= set().union(*LAYERS), "a new room: say in LAYERS where it stands"


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_imports_only_from_below(room: str) -> None:
    own = height(room)
    for path in rooms()[room]:
        for other in imported_rooms(path) - {room}:
            assert other not in FORBIDDEN.get(room, set()), f"{path.name} imports {other}"
            if own is not None and (theirs := height(other)) is not None:
                assert theirs < own or (theirs == own and {room, other} <= {"worker", "devices", "errors", "config"}), (
                    f"{path.relative_to(PACKAGE)} (layer {own}) imports {other} (layer {theirs})"
                )


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import of ours in a file but those for the type checker alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "saebench":
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "saebench"]
    return found


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Imports inside functions count too: they hide a circle, they do not open it."""
    known = modules()
    graph = {
        name: {full if (full := f"{module}.{item}") in known else module for module, item in imports_of(path)} - {name}
        for name, path in known.items()
    }
    done: set[str] = set()
    for _ in graph:  # whoever imports only what is done is done: what never gets done imports in a circle
        done |= {name for name, needed in graph.items() if needed <= done}
    assert sorted(graph.keys() - done) == []


def test_no_private_name_of_another_module_is_imported() -> None:
    for path in PACKAGE.rglob("*.py"):
        private = [f"{module}.{name}" for module, name in imports_of(path) if name.startswith("_") and name[:2] != "__"]
        assert private == [], path


LIGHT = ["config", "spec", "plan", "study", "tracking", "report", "scheduler", "executors", "sweep", "cli.sweep"]


@pytest.mark.parametrize(
    "code",
    [*(f"import saebench.{m}" for m in LIGHT), "import saebench", "import saebench.executors.local"],
)
def test_torch_free_modules_do_not_import_torch(code: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; sys.exit('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "--no-measure", "sweeps/quickstart.yaml"], ["report", "--help"]]
)
def test_light_commands_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom saebench.cli import cli\n"
        f"try: cli({arguments!r})\nexcept SystemExit as end: assert end.code in (0, None), end.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_module_mentions_pickle_or_torch_save() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "cloudpickle", "dill"} & {n.split(".")[0] for n in names}, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in {"save", "load"}, f"{path.name}:{node.lineno}: torch.{node.attr}"


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by name alone, and of two it collects one."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
