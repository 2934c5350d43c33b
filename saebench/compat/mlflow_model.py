"""An SAE as an MLflow model: texts or embeddings in, latents or reconstructions out.

MLflow runs this file on the machine that serves the model ("models from code": nothing is pickled); the SAE and the
trial's config are artifacts beside it. Do not import this module; saebench must be installed on that machine:

    model = mlflow.pyfunc.load_model("models:/<name>/1")
    model.predict(["A sentence."])                                      # (1, dict_size) latents
    model.predict(embeddings, params={"output": "reconstruction"})      # (N, d_in)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

OUTPUTS = ("latents", "reconstruction")
Rows = npt.NDArray[Any]


class SAEModel(PythonModel):
    """Loads the SAE once, and the encoder at the first text."""

    def load_context(self, context: PythonModelContext) -> None:
        from saebench.config import DataConfig
        from saebench.saes import load_sae

        self._data = DataConfig.model_validate(json.loads(Path(context.artifacts["config"]).read_text())["data"])
        self._sae = load_sae(context.artifacts["sae"])
        self._encoder: Any = None

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> Rows:
        """Return latents (N, dict_size), or reconstructions (N, d_in) with `output: reconstruction`, both float32, of N
        texts or of embeddings (N, d_in): a frame, as MLflow's server passes one, an array or a list. (MLflow reads the
        annotation, and warns about most others.) Raises ValueError for anything else."""
        import torch

        output = (params or {}).get("output", "latents")
        if output not in OUTPUTS:
            raise ValueError(f"output: {output}: must be one of {', '.join(OUTPUTS)}")
        with torch.inference_mode():
            x = self._embeddings(np.asarray(model_input))
            found = self._sae.encode(x) if output == "latents" else self._sae(x)
        rows: Rows = found.numpy()
        return rows

    def _embeddings(self, rows: Rows) -> Any:
        import torch

        one_column = rows.ndim < 2 or rows.shape[1:] == (1,)
        if one_column and rows.size and rows.dtype.kind in "OUS" and all(isinstance(t, str) for t in rows.ravel()):
            if self._encoder is None:
                from saebench.stores.sentence_encoder import SentenceEncoder

                self._encoder = SentenceEncoder(self._data, "cpu")
            from saebench.stores.texts import clean

            return self._encoder.embed([clean(text, self._data.clean) for text in rows.ravel().tolist()])
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != self._sae.d_in:
            raise ValueError(
                f"input of shape {rows.shape}: must be texts, or embeddings of {self._sae.d_in} numbers each"
            )
        return torch.from_numpy(rows.astype(np.float32))


set_model(SAEModel())
