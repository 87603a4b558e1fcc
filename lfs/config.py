"""`RunConfig`: everything a search is told. `lfs.config_file` reads it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from lfs.budget import Budget
from lfs.proposers import Baseline, Optimizer, Sigma
from lfs.samplers import INTERVALS_ONLY, Objective
from lfs.trial import Scalar
from search_space import catalog
from search_space.frozen import FrozenModel, Real
from search_space.spaces import AnySpace, CombinedMargin
from search_space.spec import LossSpec
from trainers.data import DataConfig
from trainers.recipe import MAX_LEARNING_RATE, Execution, Recipe, TrainingRecipe


def fields_of(recipe: type[TrainingRecipe]) -> AfterValidator:
    """Checks a table of some fields of a recipe: the others being their defaults, it must make one."""

    def check(table: Mapping[str, Any]) -> Mapping[str, Any]:
        recipe.model_validate_json(json.dumps(dict(table), default=str), strict=True)
        return table

    return AfterValidator(check)


class NamedLoss(FrozenModel):
    """A loss of the catalog with its parameters, what to call it, and the recipe fields in which it differs."""

    loss: str
    name: str = ""
    parameters: Mapping[str, Scalar | tuple[float, ...]] = {}
    recipe: Annotated[Mapping[str, Scalar], fields_of(Recipe)] = {}

    @model_validator(mode="after")
    def _exists(self) -> Self:
        self.spec()
        return self

    def spec(self) -> LossSpec:
        """The loss. Raises ValueError for an unknown name or parameter."""
        return catalog.get(self.loss, **self.parameters)

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.name or self.loss


class _Rounds(FrozenModel):
    batch: Annotated[int, Field(ge=2, le=1024)] = 8
    """Copies trained in a round (B)."""
    warmup_epochs: Annotated[int, Field(ge=1)] = 2
    """Trained under the loss where the space starts."""
    broadcast_momentum: bool = True
    """Whether the copies of a round start with the optimiser's state of the best of the last one, too."""
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    """A copy is rewarded after so many further epochs in which the learning rate falls to 0, and which are thrown away
    then."""


class ReinforceConfig(_Rounds):
    """Search-Softmax: rounds of B one-epoch trials, a Gaussian that follows the reward, the best broadcast."""

    method: Literal["reinforce"] = "reinforce"
    sigma_start: Annotated[Real, Field(gt=0, le=1)] = 0.2
    sigma_end: Annotated[Real, Field(gt=0, le=1)] = 0.08

    @field_validator("batch")
    @classmethod
    def _even(cls, batch: int) -> int:
        if batch % 2:
            raise ValueError("must be even: its samples come in antithetic pairs")
        return batch

    sigma: Sigma = "annealed"
    """How σ goes on from `sigma_start`: to `sigma_end`, not at all, or learned between the two."""
    optimizer: Optimizer = "plain"
    baseline: Baseline = "mean"
    """What is subtracted from the rewards of a round: their mean, a moving average over rounds, nothing."""
    rate: Annotated[Real, Field(gt=0, le=10)] = 1.0
    """A multiplier of the steps of μ."""


class ReleasedConfig(_Rounds):
    """What the published code of Search-Softmax does, which does not search: for ablation, on `modulating_factor`."""

    method: Literal["released"] = "released"
    broadcast_momentum: bool = False


class RandomConfig(_Rounds):
    """Random-Softmax: the same rounds with uniform draws."""

    method: Literal["random"] = "random"


class SelectionConfig(_Rounds):
    """What selection alone is worth: the same rounds under one constant loss, its copies in different orders of the
    data, the best of them broadcast. A control; it does not look at the space."""

    method: Literal["selection"] = "selection"
    loss: NamedLoss

    @field_validator("loss")
    @classmethod
    def _no_recipe(cls, loss: NamedLoss) -> NamedLoss:
        if loss.recipe:
            raise ValueError(f"must have no recipe of its own, but got {dict(loss.recipe)}")
        return loss


class FixedListConfig(FrozenModel):
    """Losses named beforehand, each trained for the whole horizon."""

    method: Literal["fixed_list"] = "fixed_list"
    losses: Annotated[tuple[NamedLoss, ...], Field(min_length=1)]


def _rates(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] < bounds[1] <= MAX_LEARNING_RATE:
        raise ValueError(f"must be [low, high] with 0 < low < high <= {MAX_LEARNING_RATE:g}, but got {list(bounds)}")
    return bounds


class SamplerConfig(FrozenModel):
    """Candidates from a sampler, each trained on its own: for the whole horizon, or by successive halving."""

    method: Literal["sampler"] = "sampler"
    sampler: Literal["random", "tpe", "cmaes", "gp", "qmc", "nsga2", "evolution"] = "tpe"
    """`evolution` writes its losses as formulas and does not look at the space."""
    candidates: Annotated[int, Field(ge=1, le=1_000_000)] = 27
    """How many losses are tried; under `hyperband`, in its first bracket."""
    knots: Annotated[int, Field(ge=1, le=100)] = 1
    """More than 1: the parameters of a loss move through so many values over training, in straight lines."""
    learning_rate: Annotated[tuple[Real, Real], AfterValidator(_rates)] | None = None
    """Bounds of a learning rate that is searched with each loss, on a log scale; None: all have the recipe's."""
    fidelity: Literal["full", "halving", "hyperband"] = "full"
    eta: Annotated[int, Field(ge=2, le=10)] = 3
    """Of the candidates at a rung one in `eta` goes on, for `eta` times as long."""
    min_epochs: Annotated[int, Field(ge=1)] | None = None
    """The first rung; None: a quarter of the horizon, yet not the first epoch, whose rewards mislead."""
    startup: Annotated[int, Field(ge=1)] = 10
    """Random candidates before TPE and GP begin to model."""
    population: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Of CMA-ES (at least the number of workers; None: 8), NSGA-II (None: 8) and evolution (None: 20)."""
    tournament: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Of evolution: the best of so many is changed."""
    crossover: Annotated[Real, Field(ge=0, le=1)] = 0.2
    """Of evolution: how often a candidate takes a part from a second parent."""
    seeds: Literal["catalog", "scratch"] = "catalog"
    """Of evolution: whether the first population is known losses or random formulas."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=4)] = (Objective(),)
    """What is optimised; several of them under `nsga2` or `tpe`."""

    def first_rung(self, horizon_epochs: int) -> int:
        """Epochs after which candidates are compared for the first time."""
        return self.min_epochs or max(-(-horizon_epochs // 4), min(2, horizon_epochs - 1))

    @property
    def cmaes_population(self) -> int:
        """Candidates of a generation of CMA-ES."""
        return self.population or 8

    @model_validator(mode="after")
    def _tournament_fits(self) -> Self:
        if self.sampler == "evolution" and self.tournament > (self.population or 20):
            raise ValueError(
                f"tournament must be at most the population, {self.population or 20}, but got {self.tournament}"
            )
        return self

    @model_validator(mode="after")
    def _rate_beside_a_space(self) -> Self:
        if self.sampler == "evolution" and self.learning_rate is not None:
            raise ValueError(
                f"learning_rate is searched beside the parameters of a space, and sampler 'evolution' has none; leave "
                f"it out, but got {list(self.learning_rate)}"
            )
        return self

    @model_validator(mode="after")
    def _several_objectives(self) -> Self:
        if len(self.objectives) > 1 and self.sampler not in ("nsga2", "tpe"):
            raise ValueError(
                f"sampler '{self.sampler}' takes one objective, but got {len(self.objectives)}; use 'nsga2' or 'tpe'"
            )
        if len(self.objectives) > 1 and self.fidelity != "full":
            raise ValueError(f"fidelity '{self.fidelity}' ranks by the reward alone: several objectives need 'full'")
        return self


class PopulationConfig(FrozenModel):
    """Population-based training: the worst members take over the best ones' weights and perturb their losses."""

    method: Literal["population"] = "population"
    members: Annotated[int, Field(ge=2, le=1024)] = 8
    step_epochs: Annotated[int, Field(ge=1)] = 1
    share: Annotated[Real, Field(gt=0, le=0.5)] = 0.25
    """Which share of the members is replaced after each step, and from which share at the top."""


SearchConfig = Annotated[
    ReinforceConfig
    | ReleasedConfig
    | RandomConfig
    | SelectionConfig
    | FixedListConfig
    | SamplerConfig
    | PopulationConfig,
    Field(discriminator="method"),
]


class FinalsConfig(FrozenModel):
    """After the search its best `candidates` are trained again under `seeds` further seeds; the best mean wins."""

    candidates: Annotated[int, Field(ge=2, le=1000)] = 4
    seeds: Annotated[int, Field(ge=1, le=1000)] = 3

    @property
    def trainings(self) -> int:
        """How many there are."""
        return self.candidates * self.seeds


class ExecutorConfig(FrozenModel):
    """Where trials run. `workers` None: one a GPU share, or one a CPU core (never more than the search can use)."""

    kind: Literal["ray", "serial"] = "ray"
    workers: Annotated[int, Field(ge=1, le=4096)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads a worker."""
    gpus_per_worker: Annotated[Real, Field(ge=0, le=64)] | None = None
    """A share of a GPU (0.25: four workers on one); None: a whole one where there are GPUs, else 0."""
    address: str | None = None
    """A Ray cluster: 'auto' or host:port. None: RAY_ADDRESS, else Ray is started here."""
    trial_timeout_seconds: Annotated[Real, Field(gt=0)] | None = 3600.0

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_beyond_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a whole number above 1, as a share lies on one GPU")
        return gpus

    @field_validator("address")
    @classmethod
    def _on_the_cluster(cls, address: str | None) -> str | None:
        if address is not None and address.startswith("ray://"):
            raise ValueError("must be 'auto' or host:port: a search runs on a node of its cluster, not in a Ray Client")
        return address


class NumericsConfig(FrozenModel):
    """The arithmetic, where it is not to be probed: equal numerics, seeds and machines give equal searches."""

    dtype: Literal["float32", "bfloat16"] | None = None
    channels_last: bool | None = None
    lockstep: Annotated[int, Field(ge=1, le=64)] | None = None
    """Candidates at a time on a worker, which share its batches: more of them are in flight at once."""
    execution: Execution | None = None


class TrackingConfig(FrozenModel):
    """Where MLflow's records go. `uri` None: MLFLOW_TRACKING_URI, else `mlflow.db` in the workspace."""

    enabled: bool = True
    uri: str | None = None


WINNER = "winner"
"""What tables call the search's winner among the baselines."""

DEFAULT_BASELINES = (
    NamedLoss(loss="softmax", name="softmax", parameters={"scale": 16.0}),
    NamedLoss(loss="cosface", name="constant-margin", parameters={"scale": 16.0, "margin": 0.2}),
)
HYPER_PARAMETER_FREE = (
    NamedLoss(loss="adacos_dynamic", name="adacos-dynamic"),
    NamedLoss(loss="adacos_fixed", name="adacos-fixed"),
    NamedLoss(loss="p2sgrad", name="p2sgrad"),
    NamedLoss(
        loss="p2sgrad",
        name="p2sgrad-recipe",
        parameters={"weight": 30.0},
        recipe={"embedding_dim": 4096, "learning_rate": 0.1},
    ),
)
"""Run beside every search: AdaCos; P2SGrad plain, and in a recipe in which it trains: for more classes than dimensions
its own optimum is hardly better than collapse, so it gets 4096 dimensions, and its gradient, which lacks the factor s
that the others have, 30 times as large, at the learning rate of .1 under which that was tuned (on validation)."""


class RunConfig(FrozenModel):
    """One search. `baselines` are trained beside the hyper-parameter-free ones, which always are; naming any replaces
    softmax and the constant margin."""

    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    data: DataConfig = DataConfig()
    recipe: Annotated[Mapping[str, Any], fields_of(Recipe)] = {}
    """The fields of `Recipe` that differ from the preset of the data."""
    space: AnySpace = CombinedMargin()
    search: SearchConfig = ReinforceConfig()
    budget: Budget = Budget()
    finals: FinalsConfig | None = None
    baselines: tuple[NamedLoss, ...] = DEFAULT_BASELINES
    executor: ExecutorConfig = ExecutorConfig()
    numerics: NumericsConfig = NumericsConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _baselines_can_be_told_apart(self) -> Self:
        titles = [loss.title for loss in self.all_baselines()]
        if WINNER in titles:
            raise ValueError(f"a baseline is called '{WINNER}', as tables call what the search found; rename it")
        for index, title in enumerate(titles):
            if title in titles[:index]:
                raise ValueError(f"two baselines are called '{title}'; give one of them another name")
        return self

    @model_validator(mode="after")
    def _method_fits_the_space(self) -> Self:
        search, kind = self.search, self.space.kind
        if isinstance(search, ReleasedConfig) and kind != "modulating_factor":
            raise ValueError(
                f"search.method = 'released' draws a modulating factor, so it needs space.kind = 'modulating_factor', "
                f"but got '{kind}'"
            )
        if not self.space.conditional:
            return self
        if isinstance(search, ReinforceConfig):
            raise ValueError(
                f"search.method = 'reinforce' moves a Gaussian over intervals, but space.kind = '{kind}' "
                "has choices; use search.method = 'random' or another space.kind"
            )
        if isinstance(search, SamplerConfig) and search.sampler in INTERVALS_ONLY:
            raise ValueError(
                f"search.sampler = '{search.sampler}' {INTERVALS_ONLY[search.sampler]}, but space.kind = '{kind}' "
                "has choices; use search.sampler = 'tpe' or another space.kind"
            )
        if isinstance(search, SamplerConfig) and search.knots > 1 and search.sampler != "evolution":
            raise ValueError(
                f"search.knots = {search.knots} moves parameters over training, which needs intervals alone, but "
                f"space.kind = '{kind}' has choices; use search.knots = 1 or another space.kind"
            )
        return self

    def all_baselines(self) -> tuple[NamedLoss, ...]:
        """The hyper-parameter-free ones, then the others."""
        return HYPER_PARAMETER_FREE + self.baselines
