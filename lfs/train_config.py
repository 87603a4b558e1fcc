"""`TrainConfig`: everything a full training is told, and how it is read from a TOML file and a few `--set`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from lfs.config import TrackingConfig, fields_of
from lfs.config_file import ConfigError, read_values, sentence
from lfs.found_loss import LossChoice
from search_space.frozen import FrozenModel
from trainers.data import DataConfig
from trainers.full_recipe import FullNumerics, FullRecipe, Milestones, refuse_fused_head_step
from trainers.recipe import Augmentation, Sampling


class PairsChoice(FrozenModel):
    """A verification set: a `.bin` of InsightFace, or a list of pairs and the image set that it names images of."""

    path: Path
    """A bare text in a config is this."""
    images: Path | None = None
    """None: the set that is trained on; a `.bin` holds its own."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        if not isinstance(value, str | Mapping):
            raise ValueError(f"must be a text or a table, but got {value}")
        return {"path": value} if isinstance(value, str) else value


class TrainConfig(FrozenModel):
    """One full training; `data` and `tracking` are those of a search."""

    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    data: DataConfig = DataConfig()
    loss: LossChoice
    recipe: Annotated[Mapping[str, Any], fields_of(FullRecipe)] = {}
    """The fields of `FullRecipe` that differ from its defaults; the augmentation's are those of the kind of data."""
    numerics: FullNumerics = FullNumerics()
    milestones: Milestones = Milestones()
    pairs: tuple[PairsChoice, ...] = ()
    """What the network is scored on along the way."""
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _arithmetic_fits(self) -> Self:
        refuse_fused_head_step(FullRecipe.model_validate(dict(self.recipe)), self.numerics)
        return self


_TABLES: Mapping[str, type[FrozenModel]] = {
    "": TrainConfig,
    "data": DataConfig,
    "loss": LossChoice,
    "milestones": Milestones,
    "numerics": FullNumerics,
    "pairs": PairsChoice,
    "recipe": FullRecipe,
    "recipe.augmentation": Augmentation,
    "recipe.sampling": Sampling,
    "tracking": TrackingConfig,
}


def load_train_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    data_path: Path | None = None,
    loss: str | None = None,
    network: str | None = None,
    pairs: Sequence[str] = (),
) -> TrainConfig:
    """The config in a TOML file (None: all defaults), with `key=value` overrides and the options on top.

    `pairs` are `LIST` or `LIST=IMAGES`, and come behind those of the file. Paths in the file resolve against its
    folder. Raises `ConfigError`.
    """
    values = read_values(path, overrides, data_path=data_path)
    folder = Path.cwd() if path is None else path.absolute().parent
    for table, key, given in (("loss", "source", loss), ("recipe", "network", network)):
        if given is not None and isinstance(values.setdefault(table, {}), dict):
            values[table][key] = given
    if "loss" not in values:
        raise ConfigError("a training needs a loss; give --loss with a name, a winner.json or the folder of a search")
    if isinstance(values["loss"], dict) and isinstance(source := values["loss"].get("source"), str):
        place = (Path.cwd() if loss is not None else folder) / Path(source).expanduser()
        values["loss"]["source"] = str(place) if place.exists() else source
    in_file = values.get("pairs", [])
    if isinstance(in_file, list):
        values["pairs"] = [_anchored(each, folder) for each in in_file]
        values["pairs"] += [_anchored(_pairs_of(each), Path.cwd()) for each in pairs]
    return validated_training(values)


def _pairs_of(option: str) -> dict[str, str]:
    """What `LIST` or `LIST=IMAGES` says."""
    path, equals, images = option.partition("=")
    return {"path": path, "images": images} if equals else {"path": path}


def _anchored(choice: object, folder: Path) -> object:
    """A choice of pairs with its paths absolute; anything else is left to the validation."""
    table = {"path": choice} if isinstance(choice, str) else choice
    if not isinstance(table, dict):
        return choice
    return {
        key: str(folder / Path(value).expanduser()) if isinstance(value, str) else value for key, value in table.items()
    }


def validated_training(values: Mapping[str, Any]) -> TrainConfig:
    """The config of these values. Raises `ConfigError`."""
    try:
        return TrainConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(sentence(error, values, _TABLES)) from None
