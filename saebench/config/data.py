"""Which texts are read and how they are encoded."""

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
"""Values of `dataset.path` that name a file format which `datasets` can read texts from. Their `data_files` are local,
relative to the spec's folder, and identified by their content."""


def template_fields(template: str) -> list[str]:
    """Return the columns that a template names. Raises ValueError if it is malformed or names no column."""
    parts = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    if not parts or not all(name and not spec and not how for name, spec, how in parts):
        raise ValueError('must name columns in braces, such as "{title}. {abstract}"')
    return [name for name, _, _ in parts]


def _template(template: str) -> str:
    template_fields(template)
    return template


class DatasetConfig(Config):
    """Arguments of `datasets.load_dataset(path, name, data_files=..., split=..., revision=..., streaming=True)`."""

    path: str
    """Name on the hub, a local folder, or a file format such as "parquet", "json", "csv", "text"."""
    name: str | None = None
    """Configuration of the dataset, if it has several; null: the default one."""
    data_files: str | list[str] | None = None
    """File or files to read; relative paths start at the spec's folder."""
    split: str = "train"
    """Split of the dataset to read."""
    text_column: str = "text"
    """Column with the texts; a dot reaches into nested values ("paper.abstract")."""
    text: Annotated[str, AfterValidator(_template)] | None = None
    """Template that joins columns into one text, such as "{title}. {abstract}"; replaces `text_column`."""
    label_column: str | None = None
    """Column with class labels, used for probing and for naming latents; never used in training."""
    revision: str | None = None
    """Commit or tag of a dataset on the hub; null: the newest."""
    delimiter: str | None = None
    """Separator between the fields of a CSV file, "\\t" for a tab; null: a comma."""
    encoding: str | None = None
    """Character encoding of csv, json and text files, such as cp1252; null: UTF-8."""


LARGEST_CORPUS = 2**31
"""`num_examples` of precomputed embeddings until the file has been read."""


class HoldoutConfig(Config):
    """Shares of the texts that are held out from training. The hash of a text decides its part."""

    validation: Annotated[float, Field(gt=0, lt=1)]
    """Share of the texts for pruning, choosing points and curves, measured during training."""
    test: Annotated[float, Field(gt=0, lt=1)]
    """Share of the texts for the verdict and all final numbers, measured once, at the end of a trial."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.total >= 1:
            raise ValueError(f"validation and test leave nothing to train on: {self.validation:g} + {self.test:g}")
        return self

    @property
    def total(self) -> float:
        """Sum of the two shares."""
        return self.validation + self.test


class DataConfig(Config):
    """Texts and encoder, or precomputed `embeddings`; with these, model, dataset and num_examples are optional."""

    model: str
    """Name or path of a SentenceTransformer model."""
    dataset: DatasetConfig
    """Source of the texts."""
    num_examples: PositiveInt
    """Most distinct, non-empty texts to read, including the held-out ones."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | HoldoutConfig = 0.1
    """Share of the texts that is held out from training, chosen by the hash of the text: one number (a third of it for
    validation, two thirds for test), or {validation, test}."""
    deduplicate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Drop a text if the cosine between its embedding and that of an earlier text is above this, before texts are
    divided into parts; null: drop exact duplicates only."""
    clean: Literal["whitespace", "none"] = "whitespace"
    """Cleaning of a text before it is compared, hashed and encoded. whitespace: replace each run of whitespace by one
    space and strip both ends; none: leave the text unchanged."""
    revision: str | None = None
    """Commit or tag of a model on the hub; null: the newest."""
    prompt: str | None = None
    """Prefix of every text; null: the model's default prompt, if it has one; "": no prefix."""
    normalize: bool = False
    """Scale every embedding to length 1; many models already do."""
    max_seq_length: PositiveInt | None = None
    """Longest text in tokens, longer ones are cut; null: the model's limit."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number type of the embeddings in the cache; float16 halves the space."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type in which the encoder computes."""
    encode_batch_size: PositiveInt | None = None
    """Texts of median length per forward pass of the encoder; null: 64 on a CPU, 1,024 on a GPU."""
    embeddings: str | None = None
    """Precomputed embeddings: a .npy file (rows, values), a folder of such files, a .safetensors file with one
    tensor, or a .parquet file with one column of lists."""
    texts: str | None = None
    """With `embeddings`: one text per row, as a .txt (one per line), .npy or .json file, or a column of the .parquet
    file."""
    ids: str | None = None
    """With `embeddings`: one id per row, in the same formats. The part of a row depends on its text, without texts on
    its id, without ids on its number."""
    labels: str | None = None
    """With `embeddings`: one class label per row, in the same formats, for probing."""
    cache: bool = True
    """Encode all texts once into the shared cache; `off`: every trial streams and encodes the texts itself."""

    @model_validator(mode="before")
    @classmethod
    def _names_of_own_embeddings(cls, values: Any) -> Any:
        """Fill in model and dataset from the name of the embeddings file unless they are given."""
        if not isinstance(values, dict) or not isinstance(values.get("embeddings"), str):
            return values
        path = values["embeddings"]
        names = {"model": path, "dataset": {"path": "embeddings", "data_files": path}, "num_examples": LARGEST_CORPUS}
        return {**names, **values}

    @classmethod
    def required(cls, given: Collection[str]) -> list[str]:
        """With `embeddings`, no other field is required."""
        return [] if "embeddings" in given else super().required(given)

    @property
    def parts(self) -> HoldoutConfig:
        """Return the shares of validation and test."""
        if isinstance(self.holdout, HoldoutConfig):
            return self.holdout
        return HoldoutConfig(validation=self.holdout / 3, test=self.holdout * 2 / 3)
