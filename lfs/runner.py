"""`TrainingRunner`: what a worker does with a trial."""

from dataclasses import dataclass

import torch

from lfs.checkpoints import Checkpoint
from lfs.trial import Trial
from trainers.outcome import Outcome
from trainers.recipe import Numerics, Recipe
from trainers.task import Task
from trainers.training import train


def default_device() -> str:
    """The GPU that this process may use, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class TrainingRunner:
    """Trains trials on one task under one recipe; on the GPU that it is given, else on the CPU."""

    task: Task
    recipe: Recipe
    numerics: Numerics

    def __call__(self, trial: Trial, start: Checkpoint | None) -> tuple[Outcome, Checkpoint | None]:
        """Train one trial, under the recipe as far as the trial does not differ from it."""
        recipe = Recipe.model_validate({**self.recipe.model_dump(), **trial.recipe})
        return train(
            trial.schedule,
            self.task,
            recipe=recipe,
            numerics=self.numerics,
            seed=trial.seed,
            epochs=trial.epochs,
            start=start,
            fresh_optimizer=trial.fresh_optimizer,
            cooldown_epochs=trial.cooldown_epochs,
            device=default_device(),
        )
