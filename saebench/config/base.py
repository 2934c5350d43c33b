"""`Config`, the base class of every config, and the number types that configs share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Coefficient = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Config(BaseModel):
    """Frozen, refuses unknown keys; a field's docstring is its description in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def required(cls, given: Collection[str]) -> list[str]:
        """Return the fields that must be given in addition to `given`."""
        return [name for name, field in cls.model_fields.items() if field.is_required() and name not in given]
