"""`LossSchedule`: which loss holds from which epoch on. A plain loss is the schedule with one entry."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from search_space.frozen import FrozenModel
from search_space.spec import LossSpec


class ScheduleEntry(FrozenModel):
    """`spec` holds from the start of epoch `from_epoch` (0-based) until the next entry."""

    from_epoch: Annotated[int, Field(ge=0)]
    spec: LossSpec


class LossSchedule(FrozenModel):
    """A non-empty list of (from_epoch, spec), the first from epoch 0, epochs strictly rising; all specs have as many
    `centers`, since a class keeps its weights.

    >>> from search_space import catalog
    >>> LossSchedule.constant(catalog.softmax()).at(5) == catalog.softmax()
    True
    """

    entries: Annotated[tuple[ScheduleEntry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _epochs_rise(self) -> Self:
        epochs = [entry.from_epoch for entry in self.entries]
        if epochs[0] != 0:
            raise ValueError(f"the first entry must hold from epoch 0, but got from_epoch={epochs[0]}")
        if any(later <= earlier for earlier, later in pairwise(epochs)):
            raise ValueError(f"from_epoch must rise strictly, but got {epochs}")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        centers = sorted({spec.centers for spec in self.specs()})
        if len(centers) > 1:
            raise ValueError(f"the losses of a schedule must have as many class weights a class, but got {centers}")
        return self

    @classmethod
    def constant(cls, spec: LossSpec) -> "LossSchedule":
        """The schedule that uses `spec` throughout."""
        return cls(entries=(ScheduleEntry(from_epoch=0, spec=spec),))

    def at(self, epoch: int) -> LossSpec:
        """The loss of a 0-based epoch. Raises ValueError for a negative one."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, but got epoch={epoch}")
        return next(entry.spec for entry in reversed(self.entries) if entry.from_epoch <= epoch)

    def then(self, from_epoch: int, spec: LossSpec) -> "LossSchedule":
        """This schedule up to `from_epoch`, and `spec` from there on."""
        kept = [entry for entry in self.entries if entry.from_epoch < from_epoch]
        if kept and kept[-1].spec == spec:
            return LossSchedule(entries=tuple(kept))
        return LossSchedule(entries=(*kept, ScheduleEntry(from_epoch=from_epoch, spec=spec)))

    @property
    def final(self) -> LossSpec:
        """The loss that holds at the end."""
        return self.entries[-1].spec

    def __len__(self) -> int:
        return len(self.entries)

    def specs(self) -> Iterator[LossSpec]:
        """The losses in order of use."""
        return (entry.spec for entry in self.entries)
