"""Hypothesis strategies for valid loss specs over the whole composition: any parts that fit together."""

import hypothesis.strategies as st
from pydantic import BaseModel

from search_space import LossSpec, parts

Strategy = st.SearchStrategy

SCALES = st.floats(0.5, 64)
COSINES = st.floats(-1, 1)


def pieces(values: st.SearchStrategy[float], count: int) -> st.SearchStrategy[tuple[float, ...]]:
    return st.tuples(*[values] * count)


def ordered(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    """Two numbers, the first smaller by at least a hundredth of the range."""
    gap = (high - low) / 100
    return st.floats(low, high - gap).flatmap(lambda first: st.tuples(st.just(first), st.floats(first + gap, high)))


COMBINED_TARGETS = st.builds(
    lambda guard, clip, only_positive: parts.CombinedTarget(
        guard=guard, clip_rad=clip if guard == "clip" else 0, only_positive=only_positive
    ),
    st.sampled_from(["monotone", "linear", "clip", "none"]),
    st.sampled_from([0.0, 1e-3, 0.1]),
    st.booleans(),
)
TARGETS: Strategy[parts.TargetMap] = st.one_of(
    COMBINED_TARGETS,
    COMBINED_TARGETS,
    COMBINED_TARGETS,
    st.just(parts.IdentityTarget()),
    st.just(parts.LiArcTarget()),
    st.builds(parts.X2Target, a=st.floats(-4, -0.01), h_rad=st.floats(-3, 3), k=st.floats(-2, 2)),
    st.builds(parts.ModulatingTarget, u=st.floats(0, 64)),
    st.builds(parts.ModulatingBinsTarget, u=pieces(st.floats(0, 64), parts.BINS)),
    st.builds(parts.PiecewiseTarget, knots=st.integers(2, 12).flatmap(lambda count: pieces(st.floats(-3, 3), count))),
    st.integers(1, 11).flatmap(
        lambda count: st.builds(
            parts.FreePiecewiseTarget, slopes=pieces(st.floats(-3, 3), count), offsets=pieces(COSINES, count)
        )
    ),
    st.builds(parts.CircleTarget, m=st.floats(0, 1)),
)
NEGATIVES: Strategy[parts.NegativeMap] = st.one_of(
    st.just(parts.IdentityNegative()),
    st.builds(parts.MVNegative, t=st.floats(0, 4), variant=st.sampled_from(["adaptive", "fixed"])),
    st.builds(parts.CurricularNegative, rate=st.floats(1e-4, 1)),
    st.builds(parts.NPCNegative, margin_rad=st.floats(0, 1.5), t=st.floats(1, 4), a=st.floats(0, 4)),
    st.builds(parts.ArcNegNegative, alpha=st.floats(0.1, 10), sigma=st.floats(0.1, 100)),
    st.builds(parts.SphereFaceRNegative, m=st.floats(1, 4)),
    st.just(parts.LiArcNegative()),
    st.builds(parts.CircleNegative, m=st.floats(0, 1)),
)
ANGULAR_MARGINS: Strategy[parts.Margin] = st.one_of(
    st.builds(parts.ConstantMargin, m2_rad=st.floats(0, 1.5)),
    st.builds(
        parts.RandomMargin,
        on=st.just("m2_rad"),
        mean=st.floats(0, 1.5),
        std=st.floats(0.001, 0.5),
        plus=st.booleans(),
    ),
    st.builds(
        lambda norms, margins: parts.MagFaceMargin(
            lower_norm=norms[0], upper_norm=norms[1], lower_rad=margins[0], upper_rad=margins[1]
        ),
        ordered(1, 1000),
        ordered(0, 1.5),
    ),
    st.builds(parts.ClassSizeMargin, a=st.floats(0, 1), b=st.floats(0, 0.5), power=st.floats(0.01, 2)),
)
OTHER_MARGINS: Strategy[parts.Margin] = st.one_of(
    st.builds(parts.ConstantMargin, m2_rad=st.floats(0, 1.5), m3=st.floats(0, 1)),
    st.builds(
        parts.RandomMargin, on=st.just("m3"), mean=st.floats(0, 1.5), std=st.floats(0.001, 0.5), plus=st.booleans()
    ),
    st.builds(parts.AdaFaceMargin, m=st.floats(0, 1), h=st.floats(0.01, 10), rate=st.floats(1e-4, 1)),
    st.builds(parts.LearnedMargin, initial=st.floats(0, 1)),
)
ALL_MARGINS: Strategy[parts.Margin] = st.one_of(
    st.builds(parts.ConstantMargin, m1=st.floats(1, 4), m2_rad=st.floats(0, 1.5), m3=st.floats(-0.0, 1)),
    ANGULAR_MARGINS,
    OTHER_MARGINS,
)
HARD_MARGINS: Strategy[parts.Margin] = st.builds(
    parts.HardNegativeMargin, m0_rad=st.floats(0, 1.5), m1_rad=st.floats(0, 1.5)
)
CONSTANT_SCALES = st.builds(parts.ConstantScale, value=SCALES)
SCALE_PROVIDERS: Strategy[parts.Scale] = st.one_of(
    CONSTANT_SCALES,
    st.just(parts.FeatureNormScale()),
    st.builds(parts.SoftNormScale, norm=st.floats(1, 100), strength=st.floats(1e-3, 10)),
    st.builds(parts.AdaCosScale, variant=st.sampled_from(["fixed", "dynamic"])),
)
SOFTMAX_OBJECTIVES: Strategy[parts.Objective] = st.one_of(
    st.just(parts.CrossEntropy()),
    st.integers(1, 11).flatmap(lambda count: st.builds(parts.PiecewiseTau, slopes=pieces(st.floats(0.01, 100), count))),
    st.integers(1, 11).flatmap(
        lambda count: st.builds(
            parts.FreePiecewiseTau, slopes=pieces(st.floats(-3, 3), count), offsets=pieces(COSINES, count)
        )
    ),
    st.builds(parts.Poly1, epsilon=st.floats(-1, 100)),
    st.builds(parts.Focal, gamma=st.floats(0, 10)),
)
SPHEREFACE2: Strategy[parts.Objective] = st.sampled_from([("C", 0.0, 1.0), ("A", 0.0, 1.5), ("M", 1.0, 4.0)]).flatmap(
    lambda variant: st.builds(
        parts.SphereFace2,
        variant=st.just(variant[0]),
        m=st.floats(variant[1], variant[2]),
        t=st.floats(1, 10),
        alpha=st.floats(0.05, 0.95),
    )
)
COSINE_OBJECTIVES: Strategy[parts.Objective] = st.one_of(
    SPHEREFACE2,
    st.builds(parts.SFace, k=st.floats(1, 200), a_rad=st.floats(0, 3), b_rad=st.floats(0, 3)),
    st.builds(parts.SquaredError, form=st.sampled_from(["loss", "update"])),
)


def margins_for(target: parts.TargetMap, negative: parts.NegativeMap) -> Strategy[parts.Margin]:
    """Any margin provider that the target map takes."""
    angular = ANGULAR_MARGINS
    if isinstance(negative, parts.NPCNegative):
        angular = st.one_of(HARD_MARGINS, angular)
    if isinstance(target, parts.LiArcTarget):
        return angular
    if not isinstance(target, parts.CombinedTarget):
        return st.just(parts.NoMargin())
    return st.one_of(angular, OTHER_MARGINS) if target.guard == "linear" else st.one_of(ALL_MARGINS, angular)


def regularizers_for(margin: parts.Margin, centers: int) -> Strategy[parts.Regularizer]:
    norms = st.builds(
        lambda norms, strength: parts.NormRegularizer(strength=strength, lower_norm=norms[0], upper_norm=norms[1]),
        ordered(1, 1000),
        st.floats(0.1, 100),
    )
    choices: list[Strategy[parts.Regularizer]] = [st.just(parts.NoRegularizer()), norms]
    if isinstance(margin, parts.LearnedMargin):
        choices.append(st.builds(parts.MarginRegularizer, strength=st.floats(0.1, 100)))
    if centers == 1:
        choices.append(st.builds(parts.EnergyRegularizer, strength=st.floats(0.001, 1)))
    return st.one_of(choices)


def modes_for(has_map: bool, target: BaseModel, margin: BaseModel) -> Strategy[parts.GradientMode]:
    if isinstance(margin, parts.LearnedMargin) or not has_map:
        return st.just("exact")
    if isinstance(target, parts.CombinedTarget) and target.guard == "none":
        return st.just("detached")
    return st.sampled_from(["exact", "detached"])


@st.composite
def softmax_specs(
    draw: st.DrawFn,
    targets: Strategy[parts.TargetMap] = TARGETS,
    negatives: Strategy[parts.NegativeMap] = NEGATIVES,
    objectives: Strategy[parts.Objective] = SOFTMAX_OBJECTIVES,
    scales: Strategy[parts.Scale] = SCALE_PROVIDERS,
) -> LossSpec:
    """Losses with logits: maps, margins and scales of every kind, in either gradient mode."""
    target, negative = draw(targets), draw(negatives)
    if isinstance(target, parts.CombinedTarget) and target.guard == "none":
        margins = margins_for(target, negative).filter(lambda margin: not isinstance(margin, parts.LearnedMargin))
    else:
        margins = margins_for(target, negative)
    margin, centers = draw(margins), draw(st.integers(1, 3))
    has_map = target.kind != "identity" or negative.kind != "identity"
    return LossSpec(
        target=target,
        negative=negative,
        margin=margin,
        scale=draw(scales),
        objective=draw(objectives),
        regularizer=draw(regularizers_for(margin, centers)),
        gradient=draw(modes_for(has_map, target, margin)),
        centers=centers,
        weight=draw(st.floats(0.01, 100)),
    )


@st.composite
def cosine_specs(draw: st.DrawFn) -> LossSpec:
    """Losses on bare cosines: SphereFace2, SFace, P2SGrad."""
    objective, centers = draw(COSINE_OBJECTIVES), draw(st.integers(1, 3))
    detachable = isinstance(objective, parts.SphereFace2)
    return LossSpec(
        objective=objective,
        scale=parts.NoScale() if isinstance(objective, parts.SquaredError) else draw(CONSTANT_SCALES),
        regularizer=draw(regularizers_for(parts.NoMargin(), centers)),
        gradient=draw(st.sampled_from(["exact", "detached"])) if detachable else "exact",
        centers=centers,
        weight=draw(st.floats(0.01, 100)),
    )


def specs() -> Strategy[LossSpec]:
    """Any valid loss."""
    binary = softmax_specs(objectives=st.just(parts.UniFace()), scales=CONSTANT_SCALES)
    return st.one_of(softmax_specs(), softmax_specs(), binary, cosine_specs())
