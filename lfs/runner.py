"""`TrainingRunner`: what a worker does with a trial, or with several in lockstep."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lfs.checkpoints import Checkpoint
from lfs.executor import Job
from lfs.trial import Trial
from trainers.recipe import Numerics, Recipe
from trainers.task import Task
from trainers.training import Candidate, Result, train_together


def default_device() -> str:
    """The GPU that this process may use, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class TrainingRunner:
    """Trains trials on one task under one recipe; on `device`, where None is the GPU that it is given, else the CPU."""

    task: Task
    recipe: Recipe
    numerics: Numerics
    device: str | None = None

    def __call__(self, trial: Trial, start: Checkpoint | None) -> Result:
        """Train one trial, under the recipe as far as the trial does not differ from it."""
        (result,) = self.together([Job(trial, start)])
        return result

    def together(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Train trials of one `lockstep_key` in lockstep."""
        trial = jobs[0].trial
        return train_together(
            [
                Candidate(schedule=job.trial.schedule, start=job.start, fresh_optimizer=job.trial.fresh_optimizer)
                for job in jobs
            ],
            self.task,
            recipe=self.recipe.changed(trial.recipe),
            numerics=self.numerics,
            seed=trial.seed,
            epochs=trial.epochs,
            cooldown_epochs=trial.cooldown_epochs,
            device=self.device or default_device(),
        )
