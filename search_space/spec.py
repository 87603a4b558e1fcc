"""`LossSpec`: a margin-softmax loss as a value, a point of the unified formulation.

A spec names the parts of a loss (`search_space.parts`), whether the gradient is the true one of its maps (`exact`, the
stop-gradients that a paper puts inside a map included) or passes the maps by (`detached`: every map ψ acts as
c + sg[ψ − c], characteristic gradient detachment, SphereFace-R, Liu et al. 2022, Sec. 3), and is refused, with the
reason, when the parts do not fit together.

Only specs cross process boundaries; `search_space.build` turns one into a module.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from search_space import parts
from search_space.frozen import FrozenModel, Real

_SOFTMAX_OBJECTIVES = (
    parts.CrossEntropy,
    parts.PiecewiseTau,
    parts.FreePiecewiseTau,
    parts.Poly1,
    parts.Focal,
)
COSINE_OBJECTIVES = (parts.SphereFace2, parts.SFace, parts.SquaredError)
"""Objectives on bare cosines: they have no logits, and so take no target or negative map."""


class LossSpec(FrozenModel):
    """A loss as a value: frozen, JSON-safe, refused when its parts do not fit together.

    `weight` multiplies the objective (and so its gradients), not the regularizer: P2SGrad's gradient multiplier,
    SphereFace-R's lw/s. `centers` is the number of class weights of each class, of which the nearest counts
    (Sub-center ArcFace, Deng et al., ECCV 2020).

    >>> spec = LossSpec(target=parts.CombinedTarget(), margin=parts.ConstantMargin(m3=0.35))
    >>> LossSpec.model_validate_json(spec.model_dump_json()) == spec
    True
    """

    target: parts.TargetMap = parts.IdentityTarget()
    negative: parts.NegativeMap = parts.IdentityNegative()
    margin: parts.Margin = parts.NoMargin()
    scale: parts.Scale = parts.ConstantScale()
    objective: parts.Objective = parts.CrossEntropy()
    regularizer: parts.Regularizer = parts.NoRegularizer()
    gradient: parts.GradientMode = "exact"
    centers: Annotated[int, Field(ge=1, le=20)] = 1
    weight: Annotated[Real, Field(gt=0, le=1000)] = 1.0

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for reason in _misfits(self):
            raise ValueError(reason)
        return self

    def replace(self, **changes: object) -> "LossSpec":
        """This loss with other parts, checked like any spec."""
        return LossSpec.model_validate({**dict(self), **changes})

    def digest(self) -> str:
        """Twelve hex digits that name this loss: equal specs, and only those, share it."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _misfits(spec: LossSpec) -> Iterator[str]:
    yield from _margin_misfits(spec)
    yield from _objective_misfits(spec)
    yield from _gradient_misfits(spec)
    regularizer = spec.regularizer
    if isinstance(regularizer, parts.MarginRegularizer) and not isinstance(spec.margin, parts.LearnedMargin):
        yield f"regularizer 'adam' needs margin 'learned', but got margin '{spec.margin.kind}'"
    if isinstance(regularizer, parts.EnergyRegularizer) and spec.centers > 1:
        yield f"regularizer 'hyperspherical_energy' needs centers = 1, but got centers={spec.centers}"


def _margin_misfits(spec: LossSpec) -> Iterator[str]:
    target, margin = spec.target, spec.margin
    takes_margin = isinstance(target, parts.CombinedTarget | parts.LiArcTarget)
    if takes_margin == isinstance(margin, parts.NoMargin):
        needs = "needs a margin provider" if takes_margin else "takes no margin"
        yield f"target map '{target.kind}' {needs}, but got margin '{margin.kind}'"
    given = margins_given(margin)
    if isinstance(target, parts.LiArcTarget) and not given <= {"m2_rad"}:
        yield f"target map 'li_arc' takes m2_rad alone, but margin '{margin.kind}' gives {', '.join(sorted(given))}"
    if isinstance(target, parts.CombinedTarget):
        if target.guard == "linear" and isinstance(margin, parts.ConstantMargin) and margin.m1 != 1:
            yield f"guard 'linear' needs m1 = 1, but got m1={margin.m1:g}; use 'monotone'"
        if target.guard != "clip" and target.clip_rad:
            yield f"clip_rad belongs to guard 'clip', but got clip_rad={target.clip_rad:g} with guard '{target.guard}'"
        if target.guard == "none" and spec.gradient == "exact":
            yield "guard 'none' needs gradient 'detached': past π the exact gradient changes sign"
    if isinstance(margin, parts.HardNegativeMargin) and not isinstance(spec.negative, parts.NPCNegative):
        yield f"margin 'hard_negatives' needs negative map 'npc' to say what is hard, but got '{spec.negative.kind}'"


def margins_given(margin: parts.Margin) -> set[str]:
    """Which of m1, m2_rad and m3 a margin provider moves away from no margin."""
    if isinstance(margin, parts.ConstantMargin):
        return {name for name, none in (("m1", 1), ("m2_rad", 0), ("m3", 0)) if getattr(margin, name) != none}
    if isinstance(margin, parts.RandomMargin):
        return {margin.on}
    if isinstance(margin, parts.LearnedMargin):
        return {"m3"}
    if isinstance(margin, parts.AdaFaceMargin):
        return {"m2_rad", "m3"}
    return set() if isinstance(margin, parts.NoMargin) else {"m2_rad"}


def _objective_misfits(spec: LossSpec) -> Iterator[str]:
    objective, scale = spec.objective, spec.scale
    squares = isinstance(objective, parts.SquaredError)
    if squares != isinstance(scale, parts.NoScale):
        wanted = "ignores the scale, so it needs scale 'none'" if squares else "needs a scale"
        yield f"objective '{objective.kind}' {wanted}, but got scale '{scale.kind}'"
    if isinstance(objective, COSINE_OBJECTIVES):
        for part, kind in (("target", spec.target.kind), ("negative", spec.negative.kind)):
            if kind != "identity":
                yield f"objective '{objective.kind}' takes {part} map 'identity', but got '{kind}'"
    if not squares and not isinstance(objective, _SOFTMAX_OBJECTIVES) and not isinstance(scale, parts.ConstantScale):
        yield f"objective '{objective.kind}' is no softmax and needs scale 'constant', but got scale '{scale.kind}'"


def _gradient_misfits(spec: LossSpec) -> Iterator[str]:
    if spec.gradient == "exact":
        return
    if isinstance(spec.margin, parts.LearnedMargin):
        yield "margin 'learned' needs gradient 'exact': detached, nothing would teach it"
    has_map = spec.target.kind != "identity" or spec.negative.kind != "identity"
    if not has_map and not isinstance(spec.objective, parts.SphereFace2):
        yield f"objective '{spec.objective.kind}' on bare cosines has no map to detach: gradient must be 'exact'"
