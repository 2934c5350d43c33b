"""The command line as a whole: every command has help, and a user's mistake is one line."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from saebench.cli import COMMANDS, cli, main


def commands(group: click.Group, prefix: str = "") -> list[tuple[str, click.Command]]:
    context = click.Context(group)
    found: list[tuple[str, click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append((f"{prefix}{name}", command))
        if isinstance(command, click.Group):
            found += commands(command, f"{prefix}{name} ")
    return found


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output


def test_every_command_and_option_says_what_it_does() -> None:
    for name, command in commands(cli):  # type: ignore[arg-type]
        assert (command.help or command.short_help or "").strip(), f"{name} has no help"
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts[0]} has no help"


def test_the_list_of_commands_cuts_no_sentence() -> None:
    lines = CliRunner().invoke(cli, ["--help"]).output.partition("Commands:")[2].splitlines()
    assert len(lines) > len(COMMANDS)
    assert not [line for line in lines if line.endswith("...")]


def test_a_misspelt_command_gets_a_suggestion() -> None:
    result = CliRunner().invoke(cli, ["swep", "x.yaml"])
    assert result.exit_code == 2
    assert "No such command 'swep'. Did you mean 'sweep'?" in result.output
    assert "Did you mean" not in CliRunner().invoke(cli, ["xyz"]).output


def test_the_package_can_be_run_where_the_script_is_not_on_the_path() -> None:
    ran = subprocess.run([sys.executable, "-m", "saebench", "--version"], capture_output=True, text=True, check=True)
    assert "saebench, version" in ran.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    os.mkfifo(spec)  # reading it waits for us
    command = [sys.executable, "-m", "saebench", "plan", str(spec)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as us:
        try:
            end = time.monotonic() + 60
            while (writer := _opened(spec)) is None:
                assert time.monotonic() < end
                assert us.poll() is None
                time.sleep(0.02)
            for _ in range(10):  # between open and read a signal is noted, and the read waits all the same
                us.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, errors = us.communicate(timeout=3)
                    break
        finally:
            us.kill()
    os.close(writer)
    assert (us.returncode, out, errors) == (130, "", "saebench: interrupted\n")


def _opened(fifo: Path) -> int | None:
    """The writing end, once somebody reads."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))
sys.argv[0] = "saebench"
from saebench.cli import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_too_little_address_space_is_one_line(tmp_path: Path) -> None:
    """pandas, of which `report` needs the most, does not fit into 0.3 GB."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "lock.json").write_text(
        '{"spec": {}, "d_in": 8, "tracking": {"uri": "http://h", "experiment_id": "1", "run_id": "2"}}'
    )
    command = [sys.executable, "-c", LIMITED, "report", "x", "--runs-dir", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert ran.returncode == 5, ran.stderr
    assert ran.stderr.splitlines()[-1] == "saebench: not enough memory: free some, or raise the limit (ulimit -v)"
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("can't start new thread"), "no thread can be started"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no process can be started"),
        (MemoryError(), "not enough memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x: No space left on device"),
        (RuntimeError("anything else"), None),
        (KeyError("k"), None),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    error: Exception, line: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("saebench.cli.show.sweeps", fail)
    monkeypatch.setattr("sys.argv", ["saebench", "ls"])
    if line is None:
        with pytest.raises(type(error)):
            main()
        return
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 5
    assert capsys.readouterr().err.startswith(f"saebench: {line}")


@pytest.mark.parametrize("arguments", [["nonsense"], ["plan"], ["plan", "--nonsense", "a.yaml"]])
def test_a_command_line_that_is_wrong_is_still_2(arguments: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-m", "saebench", *arguments], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Usage:" in ran.stderr
