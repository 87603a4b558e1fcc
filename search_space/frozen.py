"""The base of every value in the project: immutable, closed, checked when made."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A pydantic model that cannot be changed, refuses unknown keys, and holds no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


PlainZero = AfterValidator(lambda value: value + 0.0)
"""Turns −0.0 into 0.0, so that equal specs have equal digests."""

Real = Annotated[float, PlainZero]
"""A finite float without a negative zero."""
