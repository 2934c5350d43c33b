"""Texts, the encoder, and how they become rows of embeddings."""

from __future__ import annotations

from collections.abc import Collection
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from saebench.config.base import Config, PositiveInt

FILE_FORMATS = frozenset(
    {"arrow", "conll", "csv", "eval", "hdf5", "json", "lance", "pandas", "parquet", "sql", "text", "tsfile", "vortex"}
    | {"webdataset", "xml"}
)
"""Dataset paths that name a format: their `data_files` are files of this machine, found from the spec's folder and
known by their content. These are the formats from which `datasets` reads texts."""


def template_fields(template: str) -> list[str]:
    """Columns of a template. Raises ValueError if it is not one, or names no column."""
    parts = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    if not parts or not all(name and not spec and not how for name, spec, how in parts):
        raise ValueError('must name columns in braces, such as "{title}. {abstract}"')
    return [name for name, _, _ in parts]


def _template(template: str) -> str:
    template_fields(template)
    return template


class DatasetConfig(Config):
    """What goes to `datasets.load_dataset(path, name, data_files=..., split=..., revision=..., streaming=True)`."""

    path: str
    """Hub name, a local folder, or a builder such as "parquet", "json", "csv", "text"."""
    name: str | None = None
    """Name of the dataset's configuration, if it has several."""
    data_files: str | list[str] | None = None
    """File or files for a builder; relative ones are resolved against the spec's folder."""
    split: str = "train"
    """Split to read."""
    text_column: str = "text"
    """Column that holds the texts; a dot leads into a nested one ("paper.abstract")."""
    text: Annotated[str, AfterValidator(_template)] | None = None
    """Template over columns in the place of `text_column`, such as "{title}. {abstract}"."""
    label_column: str | None = None
    """Column with class labels, for probing; the SAE never sees it."""
    revision: str | None = None
    """Commit or tag of a hub dataset."""
    delimiter: str | None = None
    """What separates the fields of a CSV file; null: a comma. "\\t" is a tab."""
    encoding: str | None = None
    """Encoding of csv, json and text files, such as cp1252; null: UTF-8."""


LARGEST_CORPUS = 2**31
"""num_examples of precomputed embeddings, until their number is known."""


class HoldoutConfig(Config):
    """Shares of the texts that are not trained on. The part of a text is decided by its hash."""

    validation: Annotated[float, Field(gt=0, lt=1)]
    """Share for pruning, the choice of points and the curves."""
    test: Annotated[float, Field(gt=0, lt=1)]
    """Share for the verdict and every final number; measured once per trial, at its end."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.total >= 1:
            raise ValueError(f"validation and test leave nothing to train on: {self.validation:g} + {self.test:g}")
        return self

    @property
    def total(self) -> float:
        """Share of both."""
        return self.validation + self.test


class DataConfig(Config):
    """Texts, the encoder, and how they become rows of an embedding matrix; or precomputed `embeddings` in their place,
    for which model, dataset and num_examples are optional."""

    model: str
    """Any SentenceTransformer name or path."""
    dataset: DatasetConfig
    """Where the texts come from."""
    num_examples: PositiveInt
    """Cap on the distinct, non-empty texts read, held-out ones included."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | HoldoutConfig = 0.1
    """Share of the texts, chosen by their hash, that is only evaluated on: one number (a third of it is for validation,
    two thirds for test), or {validation, test}."""
    deduplicate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Leave out a text whose embedding has a cosine above this with that of an earlier text, before the parts are
    divided; null: only texts that are equal are left out."""
    clean: Literal["whitespace", "none"] = "whitespace"
    """What happens to a text before it is compared, hashed and encoded. whitespace: every run of whitespace becomes one
    space, none is kept at the ends; none: the text is encoded as it is."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    prompt: str | None = None
    """Text put before every text; null: the model's own default prompt, if it has one; "": none."""
    normalize: bool = False
    """Scale every embedding to length 1 (many models do it themselves)."""
    max_seq_length: PositiveInt | None = None
    """Tokens kept of a text; null: the model's own limit."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored embeddings."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the encoder."""
    encode_batch_size: PositiveInt | None = None
    """Texts (of median length) per forward pass of the encoder; null: 64 on a CPU, 1,024 on a GPU."""
    embeddings: str | None = None
    """Precomputed embeddings: a .npy file (rows, values), a folder of such files, a .safetensors file with one
    tensor, or a .parquet file with one column of lists."""
    texts: str | None = None
    """With `embeddings`: a text per row, as a .txt (a line each), .npy or .json file, or a column of the .parquet
    file."""
    ids: str | None = None
    """With `embeddings`: an id per row, likewise. The part of a row is decided by its text, else its id, else its
    number."""
    labels: str | None = None
    """With `embeddings`: a class per row, likewise, for probing."""
    cache: bool = True
    """Encode once into the shared cache; `off`: stream and encode inside every trial."""

    @model_validator(mode="before")
    @classmethod
    def _names_of_own_embeddings(cls, values: Any) -> Any:
        """Name model and dataset after the file unless they are given."""
        if not isinstance(values, dict) or not isinstance(values.get("embeddings"), str):
            return values
        path = values["embeddings"]
        names = {"model": path, "dataset": {"path": "embeddings", "data_files": path}, "num_examples": LARGEST_CORPUS}
        return {**names, **values}

    @classmethod
    def required(cls, given: Collection[str]) -> list[str]:
        """Own embeddings need no model and no dataset."""
        return [] if "embeddings" in given else super().required(given)

    @property
    def parts(self) -> HoldoutConfig:
        """Shares of validation and test."""
        if isinstance(self.holdout, HoldoutConfig):
            return self.holdout
        return HoldoutConfig(validation=self.holdout / 3, test=self.holdout * 2 / 3)
