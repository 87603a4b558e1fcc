"""One candidate loss in, one `Outcome` out."""

from trainers.data import DataConfig, load_sealed_test, load_task
from trainers.evaluation import embeddings
from trainers.image_source import DataError
from trainers.lockstep import probe_lockstep
from trainers.networks import build_network
from trainers.numerics import probe
from trainers.outcome import Outcome
from trainers.presets import recipe_defaults
from trainers.recipe import FARS, Augmentation, Numerics, Recipe
from trainers.task import LabelledImages, Task
from trainers.training import Candidate, train, train_together

__all__ = [
    "FARS",
    "Augmentation",
    "Candidate",
    "DataConfig",
    "DataError",
    "LabelledImages",
    "Numerics",
    "Outcome",
    "Recipe",
    "Task",
    "build_network",
    "embeddings",
    "load_sealed_test",
    "load_task",
    "probe",
    "probe_lockstep",
    "recipe_defaults",
    "train",
    "train_together",
]
