"""What a loss is, and which losses may be asked for."""

from search_space import catalog, parts
from search_space.head import MarginHead
from search_space.loss import Loss, build, target_logit
from search_space.schedule import LossSchedule, ScheduleEntry
from search_space.spaces import SPACES, AnySpace, CombinedMargin, Domain, ModulatingFactor, Space
from search_space.spec import LossSpec

__all__ = [
    "SPACES",
    "AnySpace",
    "CombinedMargin",
    "Domain",
    "Loss",
    "LossSchedule",
    "LossSpec",
    "MarginHead",
    "ModulatingFactor",
    "ScheduleEntry",
    "Space",
    "build",
    "catalog",
    "parts",
    "target_logit",
]
