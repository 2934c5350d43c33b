"""A trial's SAE as a logged model of MLflow, for its registry and `mlflow models serve`."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from saebench.config import TrialConfig
from saebench.runs.paths import TRIAL_CONFIG, TrialPaths
from saebench.runs.secrets import mask
from saebench.runs.tags import Tag
from saebench.tracking.uploads import sae_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CODE = Path(__file__).parents[1] / "compat" / "mlflow_model.py"
_NEEDS = ("saebench", "mlflow", "torch", "sentence-transformers", "safetensors")


def log_model(client: MlflowClient, experiment_id: str, run_id: str, config: TrialConfig, paths: TrialPaths) -> None:
    """Log the SAE in `paths` as a model of the run, unless the run has one. Everything goes through `client`: MLflow's
    own `log_model` would write to the process's active run and tracking URI."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if outputs and outputs.model_outputs:
        return
    model = client.create_logged_model(
        experiment_id,
        name=f"{config.sweep}-{config.number:04d}",
        source_run_id=run_id,
        model_type="sae",
        tags={Tag.SWEEP: config.sweep, Tag.STRATUM: config.stratum, Tag.TYPE: config.sae.type},
    )
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's advice to authors of models, and about classes of its own
            _save(Path(folder) / "model", paths, run_id, model.model_id)
            client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    except Exception:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, config.train.samples)])


def _save(folder: Path, paths: TrialPaths, run_id: str, model_id: str) -> None:
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    mlflow.pyfunc.save_model(
        folder,
        python_model=str(_CODE),
        artifacts=_copy(paths, folder.with_name("files")),
        pip_requirements=[f"{package}=={version(package)}" for package in _NEEDS],
        signature=ModelSignature(params=ParamSchema([ParamSpec("output", "string", "latents")])),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )
    _forget_paths(folder / "MLmodel")


def _copy(paths: TrialPaths, folder: Path) -> dict[str, str]:
    """Copy the model's files to `folder`: the SAE's own files, and the config without secrets."""
    (folder / "sae").mkdir(parents=True)
    for file in sae_files(paths.sae):
        shutil.copyfile(file, folder / "sae" / file.name)
    (folder / TRIAL_CONFIG).write_text(mask(paths.config.read_text("utf-8")), "utf-8")
    return {"sae": str(folder / "sae"), "config": str(folder / TRIAL_CONFIG)}


def _forget_paths(file: Path) -> None:
    """Remove this machine's paths from the MLmodel file; MLflow reads only the paths inside the model."""
    import yaml

    model = yaml.safe_load(file.read_text("utf-8"))
    for artifact in model["flavors"]["python_function"].get("artifacts", {}).values():
        artifact["uri"] = artifact["path"]
    file.write_text(yaml.safe_dump(model), "utf-8")
