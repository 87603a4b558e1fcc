"""A loss as curves: target logit, pull, effective margin and push, computed by the loss itself.

Every curve has a target at angle θ, negatives at 90° as after initialisation and as AdaCos assumes (Zhang et al. 2019,
Sec. 3.2), evaluation mode, and the loss's state as it starts. Shapes: N angles, C classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from search_space import LossSpec, build, parts
from search_space.loss import NOMINAL_NORM, Loss
from search_space.spec import COSINE_OBJECTIVES

NORMS = (10.0, 30.0, 100.0)
"""‖x‖ where a loss that follows it is drawn."""

CLASS_IMAGES = (5, 50, 500)
"""Images of a class where a loss that follows them is drawn."""

PUSH_TARGET_DEG = 60
"""The target angle while one negative moves."""

SHOWN_PROBABILITIES = (0.005, 0.995)
"""Between these the effective margin is drawn."""

_PROBABILITIES = torch.arange(1, 100, 2, dtype=torch.float64) / 100
_MAX_COSINES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """A loss in one of the situations that it tells apart; `state` overrides how its buffers start."""

    spec: LossSpec
    norm: float = NOMINAL_NORM
    class_images: int = int(NOMINAL_NORM)
    state: Mapping[str, float] = field(default_factory=dict)

    def build(self, num_classes: int) -> Loss:
        """The loss, in evaluation mode."""
        loss = build(self.spec, num_classes=num_classes, class_counts=[self.class_images] * num_classes).eval()
        for name, value in self.state.items():
            loss.state_dict()[name].fill_(value)
        return loss


def cases(spec: LossSpec) -> dict[str, Case]:
    """The situations that a loss tells apart, by name: norms, drawn margins, class sizes, its state later on."""
    margin = spec.margin
    if isinstance(margin, parts.RandomMargin):
        drawn = {"mean margin": 0, "+2σ": 2, "−2σ": -2}
        means = {name: margin.mean + sigmas * margin.std for name, sigmas in drawn.items()}
        shifted = {name: margin.model_copy(update={"mean": mean}) for name, mean in means.items()}  # may lie below 0
        return {name: Case(spec=spec.model_copy(update={"margin": moved})) for name, moved in shifted.items()}
    by_norm = parts.MagFaceMargin | parts.AdaFaceMargin | parts.FeatureNormScale | parts.SoftNormScale
    if isinstance(margin, by_norm) or isinstance(spec.scale, by_norm):
        return {f"‖x‖ = {norm:g}": Case(spec=spec, norm=norm) for norm in NORMS}
    if isinstance(margin, parts.ClassSizeMargin):
        return {f"a class of {images} images": Case(spec=spec, class_images=images) for images in CLASS_IMAGES}
    if isinstance(margin, parts.LearnedMargin):
        learned = Case(spec=spec, state={"margin.margin_C": 0.3})
        return {f"a margin of {margin.initial:g}, as it starts": Case(spec=spec), "a margin that reached 0.3": learned}
    if isinstance(spec.negative, parts.CurricularNegative):
        return {"t = 0, as it starts": Case(spec=spec), "t = 0.3": Case(spec=spec, state={"negative.t": 0.3})}
    return {"": Case(spec=spec)}


def own_negatives(spec: LossSpec) -> bool:
    """Whether a loss pushes negatives in another way than softmax does."""
    softmax = not isinstance(spec.objective, (*COSINE_OBJECTIVES, parts.UniFace))
    return not (softmax and isinstance(spec.negative, parts.IdentityNegative))


def curves(losses: Mapping[str, LossSpec], *, num_classes: int) -> pd.DataFrame:
    """The curves of losses, one row an angle; a loss that tells situations apart has one curve for each of them.

    Columns: `loss`, its name with the situation; `theta_deg`; `logit`, T; `gradient`, the pull −∂L/∂cos θ; `p`, the
    plain softmax probability of the target at the loss's scale; `margin`, the effective margin there, in units of
    cosine, (logit(p) − logit(p_m))/s by the probability view (Wang et al. 2020, Eqs. 5-8); `push`, ∂L/∂cos of one
    negative that moves to θ while the target stays at 60°; `own_negatives`, whether that differs from softmax's.
    `logit`, `p` and `margin` are NaN for objectives on bare cosines, which have no target logit.
    """
    frames = [
        _curve(case, num_classes).assign(
            loss=", ".join(filter(None, (name, situation))), own_negatives=own_negatives(spec)
        )
        for name, spec in losses.items()
        for situation, case in cases(spec).items()
    ]
    columns = ["loss", "theta_deg", "logit", "gradient", "p", "margin", "push", "own_negatives"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _curve(case: Case, num_classes: int) -> pd.DataFrame:
    loss, scale = case.build(num_classes), None
    theta_N = torch.arange(1, 180, dtype=torch.float64)
    if not isinstance(case.spec.objective, COSINE_OBJECTIVES):
        scale = _scale(case, num_classes)
        cos_N = (_PROBABILITIES.logit() + math.log(num_classes - 1)) / scale
        theta_N, _ = torch.cat([theta_N, torch.rad2deg(cos_N[cos_N.abs() < 1].acos())]).sort()
    rows = max(1, _MAX_COSINES // num_classes)
    chunks = [_values(loss, case.norm, scale, theta_deg_N) for theta_deg_N in torch.split(theta_N, rows)]
    columns = {name: torch.cat([chunk[name] for chunk in chunks]).numpy() for name in chunks[0]}
    return pd.DataFrame({"theta_deg": theta_N.numpy(), **columns}).reindex(
        columns=["theta_deg", "logit", "gradient", "p", "margin", "push"]
    )


def _scale(case: Case, num_classes: int) -> float:
    """s: the logit that plain softmax at this scale gives a cosine of 1."""
    plain = Case(spec=LossSpec(scale=case.spec.scale)).build(num_classes)
    cos_NC, label_N, norm_N = _batch(torch.ones(1, dtype=torch.float64), num_classes, case.norm)
    return float(plain.logits(cos_NC, label_N, norm_N=norm_N).target_N)


def _batch(cos_y_N: Tensor, num_classes: int, norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines with the target in column 0 and negatives at 90°, labels, norms."""
    cos_NC = torch.cat([cos_y_N[:, None], cos_y_N.new_zeros(len(cos_y_N), num_classes - 1)], dim=1)
    return cos_NC, torch.zeros(len(cos_y_N), dtype=torch.long), torch.full_like(cos_y_N, norm)


def _values(loss: Loss, norm: float, scale: float | None, theta_deg_N: Tensor) -> dict[str, Tensor]:
    cos_y_N = torch.deg2rad(theta_deg_N).cos()
    cos_NC, label_N, norm_N = _batch(cos_y_N, loss.num_classes, norm)
    values = {}
    if scale is not None:
        with torch.no_grad():
            logits = loss.logits(cos_NC, label_N, norm_N=norm_N)
            margin_gap_N = logits.gap()
        gap_N = scale * cos_y_N - math.log(loss.num_classes - 1)
        values = {"logit": logits.target_N, "p": gap_N.sigmoid(), "margin": (gap_N - margin_gap_N) / scale}
    values["gradient"] = -_slope(loss, cos_NC, label_N, norm_N, column=0)
    moved_NC = torch.zeros_like(cos_NC)
    moved_NC[:, 0], moved_NC[:, 1] = math.cos(math.radians(PUSH_TARGET_DEG)), cos_y_N
    return values | {"push": _slope(loss, moved_NC, label_N, norm_N, column=1)}


def _slope(loss: Loss, cos_NC: Tensor, label_N: Tensor, norm_N: Tensor, *, column: int) -> Tensor:
    """∂L/∂cos of one column."""
    cos_NC = cos_NC.requires_grad_()
    value_N = loss.from_cosines(cos_NC, label_N, norm_N=norm_N)
    (slope_NC,) = torch.autograd.grad(value_N.sum(), cos_NC)
    return slope_NC[:, column]


def axis_range(data: pd.DataFrame, column: str) -> tuple[float, float]:
    """The range of an axis for one column of `curves`: all of it, or 0 to its largest value where it is no logit.

    Towards 0° and 180° the slope of an exact angular map grows without bound, so only the angles between count there.
    """
    where = {"gradient": data["theta_deg"].between(10, 150), "push": data["theta_deg"].between(10, 150)}
    where["margin"] = data["p"].between(*SHOWN_PROBABILITIES)
    values = data.loc[where.get(column, data[column].notna()), column].round(4)
    low, high = float(values.min()), float(values.max())
    if column != "logit":
        low, high = min(0.0, low), max(0.0, high)
    room = 0.06 * (high - low) or 0.1
    return low - room * (low < 0 or column == "margin"), high + room
