"""docker/slurm/saebench.sbatch: what it does with signals and exit codes. Slurm, Ray and the sweep are stand-ins."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docker" / "slurm" / "saebench.sbatch"
COMMANDS = {
    "hostname": "echo 192.0.2.7 198.51.100.1",
    "scontrol": """
case "$1 $2" in
  "show hostnames") printf "one\\ntwo\\n" ;;
  "show job") echo "JobId=$3 JobState=$(cat "$STATE")" ;;
  *) echo "scontrol $*" >> "$HEARD" ;;
esac
""",
    "srun": 'echo "srun $*" >> "$HEARD"; exec sleep 600',
    "ray": 'echo "ray $*" >> "$HEARD"; if [ "$1" = start ]; then exec sleep 600; fi; [ -e "$UP" ]',
    "saebench": """
trap 'exit 75' USR1
echo "saebench $*" >> "$HEARD"
until [ -e "$END" ]; do /bin/sleep 0.02; done
exit "$(cat "$END")"
""",
}


class Job:
    """The script as Slurm would start it; `heard` is what it called."""

    def __init__(self, folder: Path) -> None:
        (folder / "bin").mkdir()
        for name, text in COMMANDS.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / "bin" / name).chmod(0o755)
        self.up, self.end, self._heard = folder / "up", folder / "end", folder / "heard"
        self._heard.touch()
        self.state = folder / "state"
        self.state.write_text("RUNNING")
        environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HEARD": str(self._heard), "UP": str(self.up),
            "END": str(self.end), "STATE": str(self.state), "SLURM_JOB_ID": "123",
            "SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_NODELIST": "x[1-2]",
        }  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), "mine.yaml", "--set", "run.per_device=2"],
            cwd=folder, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def heard(self, start: str) -> list[str]:
        return [line for line in self._heard.read_text().splitlines() if line.startswith(start)]

    def until(self, start: str) -> None:
        limit = time.monotonic() + 60
        while not self.heard(start):
            assert self.process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.02)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.close()


def test_the_slurm_script_is_bash_and_asks_for_less_than_killwait() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    text = SCRIPT.read_text()
    assert "#SBATCH --requeue" in text
    grace = re.search(r"run\.grace=(\d+)", text)
    assert grace is not None
    assert int(grace[1]) < 30
    assert text.index("umask 077") < text.index("RAY_AUTH_TOKEN_PATH=")


def test_every_node_starts_ray_and_the_sweep_gets_the_heads_address(job: Job, tmp_path: Path) -> None:
    job.up.touch()
    for command in ("srun", "saebench"):
        job.until(command)
    assert job.heard("saebench") == [
        "saebench sweep mine.yaml --set run.executor=ray --set run.address=192.0.2.7:20123 --set run.grace=25 "
        "--set run.per_device=2"
    ]
    assert job.heard("ray status") == ["ray status --address=192.0.2.7:20123"], "not any cluster on this node"
    assert [re.findall(r"--(?:nodelist|address)=\S+", line) for line in job.heard("srun")] == [
        ["--nodelist=two", "--address=192.0.2.7:20123"]
    ]
    (token,) = tmp_path.glob(".ray-token-*")
    assert (token.stat().st_mode & 0o777, len(token.read_text())) == (0o600, 48)
    job.end.write_text("0")
    assert job.process.wait(60) == 0
    assert not job.heard("scontrol")
    assert not token.exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("begun", [True, False])
def test_a_signal_sends_the_job_back_to_the_queue(job: Job, number: int, *, begun: bool) -> None:
    """Before the sweep has begun, too: Slurm sends the signal up to a minute early."""
    if begun:
        job.up.touch()
    job.until("saebench" if begun else "ray status")
    job.process.send_signal(number)
    assert job.process.wait(60) == 75
    assert job.heard("scontrol") == ["scontrol requeue 123"]


@pytest.mark.parametrize("code", [3, 4])
def test_other_exit_codes_end_the_job(job: Job, code: int) -> None:
    job.up.touch()
    job.end.write_text(str(code))
    assert job.process.wait(60) == code
    assert not job.heard("scontrol")


def test_a_cancelled_job_stays_cancelled(job: Job) -> None:
    """`scontrol requeue` would bring it back: seen with Slurm 22.05, which calls a job COMPLETING after `scancel`."""
    job.up.touch()
    job.until("saebench")
    job.state.write_text("COMPLETING")
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(60) == 75
    assert not job.heard("scontrol")
