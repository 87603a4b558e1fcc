"""What a loss is, and which losses may be asked for."""

from search_space import catalog, parts
from search_space.domains import Choice, Domain, Space, Values
from search_space.head import MarginHead
from search_space.head_sgd import HeadSGD
from search_space.loss import Loss, build, target_logit
from search_space.margin_loss import margin_loss
from search_space.schedule import LossSchedule, ScheduleEntry
from search_space.sharded import ShardedMarginHead, joined_state
from search_space.spaces import AMLFS, SPACES, AnySpace, CombinedMargin, ModulatingBins, ModulatingFactor
from search_space.spec import LossSpec
from search_space.unified_space import Unified

__all__ = [
    "AMLFS",
    "SPACES",
    "AnySpace",
    "Choice",
    "CombinedMargin",
    "Domain",
    "HeadSGD",
    "Loss",
    "LossSchedule",
    "LossSpec",
    "MarginHead",
    "ModulatingBins",
    "ModulatingFactor",
    "ScheduleEntry",
    "ShardedMarginHead",
    "Space",
    "Unified",
    "Values",
    "build",
    "catalog",
    "joined_state",
    "margin_loss",
    "parts",
    "target_logit",
]
