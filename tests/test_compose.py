"""docker/: the compose file and Kubernetes manifests are sound; the compose file's very commands run.

The native run reads command, environment, health check and order of start from compose.yaml and changes nothing but
addresses, ports and paths: there are no containers here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from postgres import binaries, free_port

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("mlflow", "scheduler", "ray-head", "ray-worker", "ray-scheduler")
KEYS = {
    "image", "build", "init", "stop_grace_period", "cap_drop", "security_opt", "command", "entrypoint", "environment",
    "secrets", "volumes", "healthcheck", "restart", "depends_on", "ports", "profiles", "shm_size", "deploy",
}  # fmt: skip
"""Keys of a service that the file uses, each of the compose specification."""


# --- what can be told without running anything -----------------------------------------------------------------------


def test_services_name_only_what_is_defined() -> None:
    assert set(COMPOSE) - {"name", "services", "secrets", "volumes"} == {"x-saebench", "x-ray", "x-scheduler"}
    for name, service in SERVICES.items():
        assert set(service) <= KEYS, name
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"]), name
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or source.startswith("${SWEEPS"), volume


def test_nothing_is_published_beyond_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:5000:5000"]
    assert not any("network_mode" in service or service.get("privileged") for service in SERVICES.values())


def test_secrets_are_files_and_in_no_environment_and_on_no_command_line() -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    assert (DOCKER / "secrets" / ".gitignore").read_text() == "*\n!.gitignore\n"
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            secret = re.search("PASSWORD|TOKEN", key) and key != "RAY_AUTH_MODE"
            assert not secret or value.startswith("/run/secrets/"), key
        assert not re.search(r"://[^\s/@]+:[^\s/@]+@", " ".join(map(str, service.get("command", ()))))


def test_our_containers_have_no_privileges_and_time_for_a_checkpoint() -> None:
    from saebench.sweep_config import RunConfig

    for name in OURS:
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"] is True, "somebody must pass SIGTERM on"
        assert int(service["stop_grace_period"].removesuffix("s")) >= RunConfig().grace + 10
    assert re.fullmatch(r"postgres:\d+\.\d+", SERVICES["postgres"]["image"]), "a pinned version"
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert "\nUSER 10001\n" in dockerfile
    assert "-c requirements.lock" in dockerfile
    extras = re.search(r"^ARG EXTRAS=(.+)$", dockerfile, re.M)
    known = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras is not None
    assert set(extras[1].split(",")) <= set(known)


def test_the_image_is_made_of_files_that_are_there_and_that_are_sent() -> None:
    """No image is built here: what `COPY` and `RUN` name exists, and .dockerignore lets it through."""
    root, lines = DOCKER.parent, (DOCKER / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    sources = [source.removeprefix("./") for sources in copies for source in sources]
    sent = [
        line[1:].removesuffix("/**") for line in (root / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    assert sources
    assert all((root / source).exists() for source in sources)
    assert set(sources) <= set(sent)
    locked = (root / "requirements.lock").read_text().splitlines()
    assert sum(line.startswith("torch==") for line in locked) == 1, "what RUN installs first"


def test_the_containers_commands_are_scripts_of_what_the_image_installs() -> None:
    from importlib.metadata import entry_points

    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]
    scripts = {*project["scripts"], *(found.name for found in entry_points(group="console_scripts"))}
    entry = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', (DOCKER / "Dockerfile").read_text(), re.M)
    said = [" ".join([*SERVICES[name].get("entrypoint", entry), *SERVICES[name]["command"]]) for name in OURS]
    called = [re.findall(r"(?:^|exec |-c )(ray|mlflow|saebench)\b", text) for text in said]
    assert all(called)
    assert {name for names in called for name in names} <= scripts


def manifests() -> list[dict[str, Any]]:
    files = sorted((DOCKER / "kubernetes").glob("*.yaml"))
    return [found for file in files for found in yaml.safe_load_all(file.read_text())]


def test_manifests_hold_to_their_schemas() -> None:
    """RayCluster is no kind of Kubernetes itself: its pods are validated as a Pod is."""
    import kubernetes_validate

    kinds = {found["kind"]: found for found in manifests()}
    assert set(kinds) == {"RayCluster", "PersistentVolumeClaim", "Job", "NetworkPolicy"}
    ray = kinds.pop("RayCluster")
    groups = [ray["spec"]["headGroupSpec"], *ray["spec"]["workerGroupSpecs"]]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": g["template"]["spec"]} for g in groups
    ]
    for found in (*kinds.values(), *pods):
        kubernetes_validate.validate(found, "1.31", strict=True)
    policy = kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    labelled = [*groups, kinds["Job"]["spec"]]
    assert all(group["template"]["metadata"]["labels"] == policy for group in labelled), "the policy reaches every pod"
    failing = kinds["Job"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert 75 not in failing, "stopped, resumable"
    assert 1 not in failing


# --- the commands of the compose file, natively ----------------------------------------------------------------------


class Native:
    """Services started as compose would: in order, each once those that it depends on are healthy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("5432", "5000", "6379")}
        (folder / "secrets").mkdir()
        (folder / "sweeps").mkdir()
        for name in COMPOSE["secrets"]:
            (folder / "secrets" / name).write_text(os.urandom(24).hex())
        self._owner = "nobody" if os.getuid() == 0 else None
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def translate(self, text: str, service: str) -> str:
        """Addresses, ports and paths of this machine for those of the containers."""
        for port, ours in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(ours), text)
        text = re.sub(r"\bray-head:(?=\d)", f"{own_address()}:", text)  # Ray takes no loopback
        text = re.sub(r"\b(postgres|mlflow):(?=\d)", "127.0.0.1:", text)
        text = text.replace("0.0.0.0", "127.0.0.1").replace("/run/secrets", str(self.folder / "secrets"))
        text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text).replace("/sweeps/", f"{self.folder}/sweeps/")
        return re.sub(r"(?<![\w/])/data\b", str(self.folder / service), text).replace("$$", "$")

    def command(self, name: str) -> list[str]:
        service = SERVICES[name]
        before = service.get("entrypoint", ["saebench"] if name in OURS else [])
        return [self.translate(part, name) for part in [*before, *service["command"]]]

    def environment(self, name: str) -> dict[str, str]:
        bins = os.pathsep.join([str(Path(sys.executable).parent), str(binaries()), os.environ["PATH"]])
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "SAEBENCH", "RAY", "PG"))}
        home = self.folder / name
        image = {"SAEBENCH_RUNS": str(home / "runs"), "SAEBENCH_CACHE": str(home / "cache")}  # ENV of the Dockerfile
        image["RAY_TMPDIR"] = str(self.folder / "ray")  # containers share none
        own = {key: self.translate(value, name) for key, value in SERVICES[name].get("environment", {}).items()}
        return {**clean, **image, **own, "PATH": bins, "PYTHONPATH": str(DOCKER.parent)}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        for other in SERVICES[name].get("depends_on", {}):
            if other not in self.processes:
                self.start(other)
                self.wait(other)
        (self.folder / name).mkdir()
        command, user = self.command(name), None
        if name == "postgres":  # what the image's entrypoint does
            command, user = self._initialised(command), self._owner
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment(name), cwd=self.folder / name, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True, user=user,
            )  # fmt: skip
        return self.processes[name]

    def _initialised(self, command: list[str]) -> list[str]:
        own = SERVICES["postgres"]["environment"]
        data, secret = self.folder / "postgres" / "data", self.folder / "pwfile"
        secret.write_text((self.folder / "secrets" / "db_password").read_text())
        secret.chmod(0o644)
        if self._owner:
            import shutil

            shutil.chown(self.folder / "postgres", self._owner)
        user = own["POSTGRES_USER"]
        initdb = [str(binaries() / "initdb"), "-D", str(data), "-U", user, "--auth=scram-sha-256", "--no-locale"]
        run = {"user": self._owner, "cwd": self.folder / "postgres", "stdout": subprocess.DEVNULL, "check": True}
        subprocess.run([*initdb, "--encoding=UTF8", "--no-sync", f"--pwfile={secret}"], **run)
        secret.unlink()
        single = [str(binaries() / "postgres"), "--single", "-D", str(data), "postgres"]
        subprocess.run(
            single, input=f"CREATE DATABASE {own['POSTGRES_DB']}\n".encode(), stderr=subprocess.DEVNULL, **run
        )
        more = ["-D", str(data), "-p", self.ports["5432"], "-h", "127.0.0.1", "-k", str(data)]
        return [str(binaries() / command[0]), *command[1:], *map(str, more)]

    def wait(self, name: str) -> None:
        """Run the service's health check until it succeeds."""
        check = [self.translate(part, name) for part in SERVICES[name]["healthcheck"]["test"]]
        assert check.pop(0) == "CMD"
        check[0] = {"python": sys.executable, "pg_isready": "pg_isready"}[check[0]]
        if check[0] == "pg_isready":  # not among the binaries of every package
            there = binaries() / "pg_isready"
            check = (
                [str(there), *check[1:]] if there.exists() else [sys.executable, "-c", PROBE, str(self.ports["5432"])]
            )
        until = time.monotonic() + 150
        while subprocess.run(check, env=self.environment(name), capture_output=True, check=False).returncode:
            log = (self.folder / f"{name}.log").read_text()
            assert self.processes[name].poll() is None, log
            assert time.monotonic() < until, log
            time.sleep(0.3)

    def restart(self, name: str) -> None:
        """End a service as a crash would (PostgreSQL calls SIGQUIT its immediate shutdown) and start it again."""
        before = self.processes[name]
        before.send_signal(signal.SIGQUIT)
        before.wait(30)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                before.args, env=self.environment(name), cwd=self.folder / name, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True, user=self._owner,
            )  # fmt: skip
        self.wait(name)

    def start_ray(self, name: str) -> None:
        """Start a Ray node; again if it does not come up, as on a busy machine."""
        for _ in range(3):
            process, log = self.start(name), self.folder / f"{name}.log"
            until = time.monotonic() + 90
            while process.poll() is None and time.monotonic() < until:
                if "Ray runtime started" in log.read_text():
                    return
                time.sleep(0.3)
            self.end(process)
            (self.folder / name).rmdir()
        raise AssertionError((self.folder / f"{name}.log").read_text())

    def end_of(self, process: subprocess.Popen[bytes], name: str, seconds: float) -> str:
        """Wait for a service that ends by itself, with exit status 0; return its log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        log = (self.folder / f"{name}.log").read_text()
        assert process.poll() == 0, log
        return log

    def end(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            self.end(process)
        for left in psutil.process_iter():  # `ray start` without --block leaves its group
            with contextlib.suppress(psutil.Error):
                if left.environ().get("RAY_AUTH_TOKEN_PATH", "").startswith(str(self.folder)):
                    left.kill()


def own_address() -> str:
    """As Ray finds it: the address from which the way outside begins (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
        one.connect(("8.8.8.8", 53))
        found: str = one.getsockname()[0]
        return found
    return "127.0.0.1"


PROBE = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)"


@pytest.fixture
def native() -> Iterator[Native]:
    """Not in tmp_path: root may not run PostgreSQL, and another user sees no folder of pytest's."""
    with tempfile.TemporaryDirectory(prefix="saebench-compose-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        found = Native(Path(name))
        yield found
        found.close()


@pytest.mark.slow
@pytest.mark.minutes
def test_the_very_commands_of_the_compose_file_run_a_sweep(native: Native, glosses: Path, minilm_path: str) -> None:
    """PostgreSQL crashes in the middle, under the search and under MLflow: nothing is lost, nothing doubled."""
    write_spec(native, glosses, minilm_path, samples=40_000, devices="cpu", per_device=1)
    process, root = native.start("scheduler"), native.folder / "scheduler" / "runs" / "composed"
    until = time.monotonic() + 120
    while not any('"eval"' in path.read_text() for path in root.glob("trials/*/events.jsonl")):
        assert process.poll() is None, (native.folder / "scheduler.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    native.restart("postgres")
    log = native.end_of(process, "scheduler", 200)
    assert f"tracking: http://127.0.0.1:{native.ports['5000']}" in log
    password = (native.folder / "secrets" / "db_password").read_text()
    apart = {"postgres", "secrets"}
    held = [path for path in native.folder.rglob("*") if path.is_file() and not apart & set(path.parts)]
    assert not [path for path in held if password.encode() in path.read_bytes()]
    assert_recorded(native, root, password)


@pytest.mark.slow
@pytest.mark.minutes
def test_the_commands_of_the_ray_profile_run_a_sweep(native: Native, glosses: Path, minilm_path: str) -> None:
    write_spec(native, glosses, minilm_path, samples=2000, threads=1)
    native.start_ray("ray-head")
    native.wait("ray-head")
    native.start_ray("ray-worker")
    process, root = native.start("ray-scheduler"), native.folder / "ray-scheduler" / "runs" / "composed"
    native.end_of(process, "ray-scheduler", 250)
    password = (native.folder / "secrets" / "db_password").read_text()
    token = (native.folder / "secrets" / "ray_token").read_text()
    assert_recorded(native, root, password)
    held = [path for path in root.rglob("*") if path.is_file()]
    assert not [path for path in held if password.encode() in path.read_bytes() or token.encode() in path.read_bytes()]


def write_spec(native: Native, glosses: Path, model: str, *, samples: int, **run: Any) -> None:
    """The spec that the compose file's scheduler reads: two trials."""
    spec = {
        "name": "composed",
        "data": {
            "model": model, "dataset": {"path": "parquet", "data_files": str(glosses)}, "num_examples": 300,
            "holdout": 0.2,
        },
        "sae": [{"type": "topk", "k": [4, 8], "dict_size": 64}],
        "train": {"samples": samples, "batch_size": 50, "lr": 0.01},
        "run": run,
    }  # fmt: skip
    (native.folder / "sweeps" / "quickstart.yaml").write_text(yaml.safe_dump(spec))


def assert_recorded(native: Native, root: Path, password: str) -> None:
    """MLflow has every point of events.jsonl once, and the journal every mark."""
    import psycopg2

    from saebench.runs import events
    from saebench.runs.paths import SweepPaths

    trials = SweepPaths(root).trials()
    recorded = [event for trial in trials for event, _ in events.read(trial.events) if event.type == "eval"]
    assert len(trials) == 2
    port = native.ports["5432"]
    there = psycopg2.connect(host="127.0.0.1", port=port, user="saebench", dbname="saebench", password=password)
    with there, there.cursor() as at:
        at.execute("SELECT count(*), count(DISTINCT (run_uuid, step)) FROM metrics WHERE key = 'eval/fvu'")
        assert at.fetchone() == (len(recorded), len(recorded))
        at.execute("SELECT count(*) FILTER (WHERE status = 'FINISHED'), count(*) FROM runs")
        assert at.fetchone() == (3, 3), "the parent's and two trials'"
        marks = (
            """record LIKE '%"intermediate_value":%'"""  # of a report; a new trial's record has "intermediate_values"
        )
        at.execute(f"SELECT count(*) FROM saebench_journal WHERE sweep = 'composed' AND {marks}")
        assert at.fetchone() == (len(recorded),)
    there.close()
