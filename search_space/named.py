"""One function for each named loss, its published settings as defaults. `search_space.catalog` lists them."""

from collections.abc import Sequence
from typing import Literal

from search_space import parts
from search_space.parts import CombinedTarget, ConstantMargin, ConstantScale, GradientMode
from search_space.spec import LossSpec

PIECES = 10
_KNOTS = tuple(round(-1 + 2 * k / PIECES, 6) for k in range(PIECES + 1))
_ONES, _ZEROS = (1.0,) * PIECES, (0.0,) * PIECES


def softmax(scale: float = 30.0) -> LossSpec:
    """Normalised softmax without a margin."""
    return LossSpec(scale=ConstantScale(value=scale))


# Margins on the target alone


def sphereface(m: float = 1.5, scale: float = 30.0, gradient: GradientMode = "detached") -> LossSpec:
    """Multiplicative angular margin m1 = m, SphereFace v0."""
    return LossSpec(
        target=CombinedTarget(),
        margin=ConstantMargin(m1=m),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def sphereface_plus(
    m: float = 1.5, scale: float = 30.0, strength: float = 0.1, gradient: GradientMode = "detached"
) -> LossSpec:
    """SphereFace v0 whose class weights repel each other."""
    return sphereface(m, scale, gradient).replace(regularizer=parts.EnergyRegularizer(strength=strength))


def sphereface_r_v1(
    m: float = 1.4, scale: float = 60.0, weight: float = 50 / 60, gradient: GradientMode = "detached"
) -> LossSpec:
    """Multiplicative margin with the angle clipped at π, on normalised features (HFN); `weight` is lw/s."""
    return LossSpec(
        target=CombinedTarget(guard="clip"),
        margin=ConstantMargin(m1=m),
        scale=ConstantScale(value=scale),
        gradient=gradient,
        weight=weight,
    )


def _sphereface_r_v2(m: float, scale: parts.Scale, weight: float, gradient: GradientMode) -> LossSpec:
    return LossSpec(negative=parts.SphereFaceRNegative(m=m), scale=scale, gradient=gradient, weight=weight)


def sphereface_r_v2(
    m: float = 1.4, scale: float = 60.0, weight: float = 50 / 60, gradient: GradientMode = "detached"
) -> LossSpec:
    """Margin on the negatives, cos(θ_j/m), on normalised features (HFN); `weight` is lw/s."""
    return _sphereface_r_v2(m, ConstantScale(value=scale), weight, gradient)


def sphereface_r_nfn(m: float = 1.4, gradient: GradientMode = "detached") -> LossSpec:
    """SphereFace-R v2 without feature normalisation: s = ‖x‖."""
    return _sphereface_r_v2(m, parts.FeatureNormScale(), 1.0, gradient)


def sphereface_r_sfn(
    m: float = 1.4,
    norm: float = 60.0,
    strength: float = 0.01,
    weight: float = 50 / 60,
    gradient: GradientMode = "detached",
) -> LossSpec:
    """SphereFace-R v2 with soft feature normalisation: s = ‖x‖, pulled towards `norm`; `weight` is lw/norm."""
    return _sphereface_r_v2(m, parts.SoftNormScale(norm=norm, strength=strength), weight, gradient)


def cosface(margin: float = 0.35, scale: float = 64.0) -> LossSpec:
    """Additive cosine margin m3 = margin."""
    return LossSpec(target=CombinedTarget(), margin=ConstantMargin(m3=margin), scale=ConstantScale(value=scale))


def arcface(margin_rad: float = 0.5, scale: float = 64.0, gradient: GradientMode = "exact") -> LossSpec:
    """Additive angular margin m2 = margin_rad, linear past π."""
    return LossSpec(
        target=CombinedTarget(guard="linear"),
        margin=ConstantMargin(m2_rad=margin_rad),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def combined(
    m1: float = 1.0,
    m2_rad: float = 0.3,
    m3: float = 0.2,
    scale: float = 64.0,
    gradient: GradientMode = "exact",
) -> LossSpec:
    """All three margins at once, continuous and monotone past π."""
    return LossSpec(
        target=CombinedTarget(),
        margin=ConstantMargin(m1=m1, m2_rad=m2_rad, m3=m3),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def li_arcface(margin_rad: float = 0.45, scale: float = 64.0, gradient: GradientMode = "exact") -> LossSpec:
    """Logits linear in the angle, for all classes."""
    return LossSpec(
        target=parts.LiArcTarget(),
        negative=parts.LiArcNegative(),
        margin=ConstantMargin(m2_rad=margin_rad),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def x2_softmax(
    a: float = -0.9,
    h_rad: float = 0.0,
    k: float = 0.65,
    scale: float = 64.0,
    gradient: GradientMode = "detached",
) -> LossSpec:
    """Target logit quadratic in the angle."""
    target = parts.X2Target(a=a, h_rad=h_rad, k=k)
    return LossSpec(target=target, scale=ConstantScale(value=scale), gradient=gradient)


def subcenter_arcface(
    margin_rad: float = 0.5, centers: int = 3, scale: float = 64.0, gradient: GradientMode = "exact"
) -> LossSpec:
    """ArcFace over the nearest of several class weights of each class."""
    return arcface(margin_rad, scale, gradient).replace(centers=centers)


# The probability view


def modulating(margin: float = 0.2, scale: float = 32.0) -> LossSpec:
    """A constant modulating factor a = 1 − exp(scale·margin)."""
    return LossSpec(target=parts.ModulatingTarget(u=scale * margin), scale=ConstantScale(value=scale))


def modulating_bins(margins: Sequence[float] = (0.2,) * parts.BINS, scale: float = 32.0) -> LossSpec:
    """A modulating factor for each of ten equal bins of the plain probability p: u_k = scale·margins[k]."""
    target = parts.ModulatingBinsTarget(u=tuple(scale * margin for margin in margins))
    return LossSpec(target=target, scale=ConstantScale(value=scale))


def am_lfs(
    t: Sequence[float] = _KNOTS,
    tau: Sequence[float] = _ONES,
    scale: float = 30.0,
    gradient: GradientMode = "exact",
) -> LossSpec:
    """Continuous piecewise-linear maps of cosine (`t`: its knots) and probability (`tau`: its slopes)."""
    return LossSpec(
        target=parts.PiecewiseTarget(knots=tuple(t)),
        objective=parts.PiecewiseTau(slopes=tuple(tau)),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def am_lfs_free(
    t_slopes: Sequence[float] = _ONES,
    t_offsets: Sequence[float] = _ZEROS,
    tau_slopes: Sequence[float] = _ONES,
    tau_offsets: Sequence[float] = _ZEROS,
    scale: float = 30.0,
    gradient: GradientMode = "exact",
) -> LossSpec:
    """Independent slopes and offsets in each interval, as AM-LFS publishes them: the maps may jump."""
    return LossSpec(
        target=parts.FreePiecewiseTarget(slopes=tuple(t_slopes), offsets=tuple(t_offsets)),
        objective=parts.FreePiecewiseTau(slopes=tuple(tau_slopes), offsets=tuple(tau_offsets)),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def poly1(epsilon: float = 1.0, scale: float = 30.0) -> LossSpec:
    """Cross entropy plus ε(1 − p)."""
    return LossSpec(objective=parts.Poly1(epsilon=epsilon), scale=ConstantScale(value=scale))


def focal(gamma: float = 2.0, scale: float = 30.0) -> LossSpec:
    """Cross entropy times (1 − p)^γ."""
    return LossSpec(objective=parts.Focal(gamma=gamma), scale=ConstantScale(value=scale))


# Re-weighted negatives

MVVariant = Literal["adaptive", "fixed"]


def mv_am(margin: float = 0.35, t: float = 0.2, variant: MVVariant = "adaptive", scale: float = 32.0) -> LossSpec:
    """CosFace whose misclassified negatives weigh more."""
    negative = parts.MVNegative(t=t, variant=variant)
    return LossSpec(
        target=CombinedTarget(),
        negative=negative,
        margin=ConstantMargin(m3=margin),
        scale=ConstantScale(value=scale),
    )


def mv_arc(
    margin_rad: float = 0.35,
    t: float = 0.2,
    variant: MVVariant = "adaptive",
    scale: float = 32.0,
    gradient: GradientMode = "exact",
) -> LossSpec:
    """ArcFace whose misclassified negatives weigh more."""
    negative = parts.MVNegative(t=t, variant=variant)
    return arcface(margin_rad, scale, gradient).replace(negative=negative)


def curricularface(margin_rad: float = 0.5, scale: float = 64.0, gradient: GradientMode = "exact") -> LossSpec:
    """ArcFace whose hard negatives weigh less early in training and more later."""
    return arcface(margin_rad, scale, gradient).replace(negative=parts.CurricularNegative())


def npcface(
    margin_rad: float = 0.5,
    m0_rad: float = 0.4,
    m1_rad: float = 0.2,
    t: float = 1.1,
    a: float = 0.2,
    scale: float = 64.0,
    gradient: GradientMode = "exact",
) -> LossSpec:
    """Hard negatives weigh more, and raise the margin of their sample; `margin_rad` says which are hard."""
    return LossSpec(
        target=CombinedTarget(only_positive=True),
        negative=parts.NPCNegative(margin_rad=margin_rad, t=t, a=a),
        margin=parts.HardNegativeMargin(m0_rad=m0_rad, m1_rad=m1_rad),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def arcnegface(
    margin_rad: float = 0.5,
    alpha: float = 1.2,
    sigma: float = 2.0,
    scale: float = 64.0,
    gradient: GradientMode = "exact",
) -> LossSpec:
    """ArcFace whose negatives weigh more the nearer they are to the target's logit."""
    negative = parts.ArcNegNegative(alpha=alpha, sigma=sigma)
    return arcface(margin_rad, scale, gradient).replace(negative=negative)


def circle(margin: float = 0.25, gamma: float = 256.0) -> LossSpec:
    """Circle Loss in its form with class weights; γ is the scale."""
    return LossSpec(
        target=parts.CircleTarget(m=margin),
        negative=parts.CircleNegative(m=margin),
        scale=ConstantScale(value=gamma),
    )


# Margins that differ from sample to sample


def _elasticface(on: Literal["m2_rad", "m3"], mean: float, std: float, scale: float, *, plus: bool) -> LossSpec:
    return LossSpec(
        target=CombinedTarget(guard="linear" if on == "m2_rad" else "monotone"),
        margin=parts.RandomMargin(on=on, mean=mean, std=std, plus=plus),
        scale=ConstantScale(value=scale),
    )


def elasticface_arc(margin_rad: float = 0.5, std_rad: float = 0.05, scale: float = 64.0) -> LossSpec:
    """ArcFace with a margin drawn for each sample."""
    return _elasticface("m2_rad", margin_rad, std_rad, scale, plus=False)


def elasticface_arc_plus(margin_rad: float = 0.5, std_rad: float = 0.0175, scale: float = 64.0) -> LossSpec:
    """ArcFace with drawn margins, the smallest for the sample nearest to its class."""
    return _elasticface("m2_rad", margin_rad, std_rad, scale, plus=True)


def elasticface_cos(margin: float = 0.35, std: float = 0.05, scale: float = 64.0) -> LossSpec:
    """CosFace with a margin drawn for each sample."""
    return _elasticface("m3", margin, std, scale, plus=False)


def elasticface_cos_plus(margin: float = 0.35, std: float = 0.02, scale: float = 64.0) -> LossSpec:
    """CosFace with drawn margins, the smallest for the sample nearest to its class."""
    return _elasticface("m3", margin, std, scale, plus=True)


def magface(
    lower_norm: float = 10.0,
    upper_norm: float = 110.0,
    lower_margin_rad: float = 0.45,
    upper_margin_rad: float = 0.8,
    strength: float = 35.0,
    scale: float = 64.0,
) -> LossSpec:
    """Angular margin that grows with ‖x‖, and a regularizer that rewards a large ‖x‖."""
    return LossSpec(
        target=CombinedTarget(only_positive=True),
        margin=parts.MagFaceMargin(
            lower_norm=lower_norm, upper_norm=upper_norm, lower_rad=lower_margin_rad, upper_rad=upper_margin_rad
        ),
        scale=ConstantScale(value=scale),
        regularizer=parts.NormRegularizer(strength=strength, lower_norm=lower_norm, upper_norm=upper_norm),
    )


def adaface(margin: float = 0.4, h: float = 0.333, scale: float = 64.0, gradient: GradientMode = "exact") -> LossSpec:
    """Angular and cosine margins that follow ‖x‖ as a measure of image quality."""
    return LossSpec(
        target=CombinedTarget(guard="clip", clip_rad=1e-3),
        margin=parts.AdaFaceMargin(m=margin, h=h),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def adaptiveface(strength: float = 70.0, scale: float = 30.0) -> LossSpec:
    """AdaM-Softmax: a learned cosine margin for each class, rewarded for being large."""
    return LossSpec(
        target=CombinedTarget(),
        margin=parts.LearnedMargin(),
        scale=ConstantScale(value=scale),
        regularizer=parts.MarginRegularizer(strength=strength),
    )


def class_size(a: float = 0.5, b: float = 0.05, power: float = 0.25, scale: float = 64.0) -> LossSpec:
    """ArcFace with a margin by class size: a·n^−power + b for a class of n training images."""
    return LossSpec(
        target=CombinedTarget(guard="linear"),
        margin=parts.ClassSizeMargin(a=a, b=b, power=power),
        scale=ConstantScale(value=scale),
    )


# Without hyper-parameters


def adacos_fixed() -> LossSpec:
    """AdaCos with its fixed scale; no hyper-parameter."""
    return LossSpec(scale=parts.AdaCosScale(variant="fixed"))


def adacos_dynamic() -> LossSpec:
    """AdaCos with its dynamic scale; no hyper-parameter."""
    return LossSpec(scale=parts.AdaCosScale(variant="dynamic"))


def p2sgrad(weight: float = 1.0, form: Literal["loss", "update"] = "loss") -> LossSpec:
    """P2SGrad as a sum of squares; no hyper-parameter but the gradient multiplier `weight`.

    `form` "update" imposes the paper's gradient, which equals that of the sum.
    """
    return LossSpec(scale=parts.NoScale(), objective=parts.SquaredError(form=form), weight=weight)


# Other reducers


def _sphereface2(
    variant: Literal["C", "A", "M"], m: float, alpha: float, scale: float, t: float, lw: float, gradient: GradientMode
) -> LossSpec:
    return LossSpec(
        objective=parts.SphereFace2(variant=variant, m=m, t=t, alpha=alpha),
        scale=ConstantScale(value=scale),
        gradient=gradient,
        weight=lw / scale,
    )


def sphereface2_c(
    margin: float = 0.4,
    alpha: float = 0.7,
    scale: float = 40.0,
    t: float = 3.0,
    lw: float = 50.0,
    gradient: GradientMode = "detached",
) -> LossSpec:
    """SphereFace2 with an additive cosine margin on both sides; the loss is weighted lw/scale."""
    return _sphereface2("C", margin, alpha, scale, t, lw, gradient)


def sphereface2_a(
    margin_rad: float = 0.5,
    alpha: float = 0.7,
    scale: float = 40.0,
    t: float = 3.0,
    lw: float = 50.0,
    gradient: GradientMode = "detached",
) -> LossSpec:
    """SphereFace2 with an additive angular margin on the target; the loss is weighted lw/scale."""
    return _sphereface2("A", margin_rad, alpha, scale, t, lw, gradient)


def sphereface2_m(
    m: float = 1.7,
    alpha: float = 0.7,
    scale: float = 40.0,
    t: float = 3.0,
    lw: float = 50.0,
    gradient: GradientMode = "detached",
) -> LossSpec:
    """SphereFace2 with a multiplicative angular margin on the target; the loss is weighted lw/scale."""
    return _sphereface2("M", m, alpha, scale, t, lw, gradient)


def uniface(margin: float = 0.4, scale: float = 64.0) -> LossSpec:
    """One threshold for all classes: binary cross entropies with a shared learned bias."""
    return LossSpec(
        target=CombinedTarget(),
        margin=ConstantMargin(m3=margin),
        scale=ConstantScale(value=scale),
        objective=parts.UniFace(),
    )


def sface(k: float = 80.0, a_rad: float = 0.8, b_rad: float = 1.23, scale: float = 64.0) -> LossSpec:
    """Pulls and pushes that switch off by sigmoids of the angle: no softmax."""
    return LossSpec(objective=parts.SFace(k=k, a_rad=a_rad, b_rad=b_rad), scale=ConstantScale(value=scale))
