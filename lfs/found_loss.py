"""From what the user calls a loss (a name, a file, a search) to the `LossSchedule` of a training of some length."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from lfs.config_file import sentence
from lfs.errors import UserError
from lfs.launch import read_search
from lfs.trial import Scalar
from lfs.winner import take_home
from search_space import LossSchedule, LossSpec, catalog
from search_space.frozen import FrozenModel


class LossChoice(FrozenModel):
    """Which loss a full training takes."""

    source: str = Field(min_length=1)
    """A name of the catalog, a JSON file (`lossearch export`'s, a schedule, a loss), or the folder of a search."""
    parameters: Mapping[str, Scalar | tuple[float, ...]] = {}
    """Of a named loss."""
    mapping: Literal["scale", "epochs", "constant", "final"] = "scale"
    """How a found schedule, whose epochs are those of the search's horizon, is laid over a training of another length:
    each entry keeps its share of the run (`scale`) or its epoch (`epochs`); or one loss holds throughout, the constant
    one that the search recommends (`constant`) or the schedule's last (`final`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLoss:
    """A schedule, the epochs of the training that it is from where that is known, and the constant loss beside it."""

    schedule: LossSchedule
    horizon_epochs: int | None = None
    constant: LossSpec | None = None


def find_loss(choice: LossChoice) -> FoundLoss:
    """The loss that the choice names. Raises `UserError`."""
    path = Path(choice.source).expanduser()
    if path.is_dir() or path.suffix == ".json":
        if choice.parameters:
            raise UserError(f"loss.parameters belong to a loss of the catalog, but loss.source is {choice.source}")
        content = take_home(read_search(path)[1]) if path.is_dir() else _content(path)
        return _found(content, path)
    try:
        return FoundLoss(schedule=LossSchedule.constant(catalog.get(choice.source, **choice.parameters)))
    except ValidationError as error:
        raise UserError(sentence(error, {"loss": {"parameters": choice.parameters}})) from None
    except ValueError as error:
        hint = "; a file must end in .json" if choice.source not in catalog.NAMES else ""
        raise UserError(f"loss: {error}{hint}") from None


def _content(path: Path) -> object:
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the loss {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"the loss {path} is not valid JSON: {error}") from None
    return content


def _found(content: object, path: Path) -> FoundLoss:
    try:
        if not isinstance(content, Mapping):
            raise UserError(
                f"{path} holds no loss; give what 'lossearch export' or 'lossearch losses NAME --json' wrote"
            )
        if "schedule" in content:
            constant, epochs = content.get("constant"), content.get("epochs")
            return FoundLoss(
                schedule=LossSchedule.model_validate(content["schedule"]),
                horizon_epochs=epochs if isinstance(epochs, int) else None,
                constant=None if constant is None else LossSpec.model_validate(constant),
            )
        if "entries" in content:
            return FoundLoss(schedule=LossSchedule.model_validate(content))
        return FoundLoss(schedule=LossSchedule.constant(LossSpec.model_validate(content)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} holds no loss that can be used: {place}: {first['msg']}") from None


def mapped(found: FoundLoss, choice: LossChoice, epochs: int) -> LossSchedule:
    """The schedule of a training of so many epochs. Raises `UserError` where it cannot be had.

    Under `scale` the loss of 0-based epoch e is that of epoch ⌊e · horizon / epochs⌋ of the search.
    """
    if choice.mapping == "constant" and found.constant is None:
        raise UserError(f"loss.mapping = 'constant' needs a constant loss, but {choice.source} has none; use 'final'")
    if choice.mapping == "constant" and found.constant is not None:
        return LossSchedule.constant(found.constant)
    if choice.mapping == "final" or len(found.schedule) == 1:
        return LossSchedule.constant(found.schedule.final)
    stretch = 1.0
    if choice.mapping == "scale":
        if found.horizon_epochs is None:
            raise UserError(
                f"{choice.source} does not say how many epochs its schedule is of; "
                "set loss.mapping to 'epochs' or 'final'"
            )
        stretch = epochs / found.horizon_epochs
    laid = LossSchedule.constant(found.schedule.at(0))
    for entry in found.schedule.entries[1:]:
        first = math.ceil(round(entry.from_epoch * stretch, 9))
        if first < epochs:
            laid = laid.then(first, entry.spec) if first else LossSchedule.constant(entry.spec)
    return laid
