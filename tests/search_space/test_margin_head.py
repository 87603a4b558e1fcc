"""`MarginHead`: a loss with its class weights in someone's own training loop."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_space import LossSpec, MarginHead, ShardedMarginHead, build, catalog, parts
from search_space.parts import AdaCosScale

CLASSES, DIM = 6, 8
COUNTS = [5, 1, 30, 10, 2, 700]

# What each loss keeps in `state_dict` beside the class weights; all others keep nothing.
TRACKED = {
    "adacos_dynamic": {"loss.scale.value"},
    "adaface": {"loss.margin.norm_mean", "loss.margin.norm_std"},
    "curricularface": {"loss.negative.t"},
}
LEARNED = {
    "adaptiveface": {"loss.margin.margin_C"},
    "sphereface2_a": {"loss.objective.bias"},
    "sphereface2_c": {"loss.objective.bias"},
    "sphereface2_m": {"loss.objective.bias"},
    "uniface": {"loss.objective.threshold"},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head_of(spec: LossSpec, seed: int = 0) -> MarginHead:
    head = MarginHead(spec, CLASSES, DIM, class_counts=COUNTS, generator=generator(seed))
    head.loss.generator = generator(9)
    return head


def batch(seed: int = 0, count: int = 12) -> tuple[Tensor, Tensor]:
    return 20 * torch.randn(count, DIM, generator=generator(seed)), torch.arange(count) % CLASSES


def state_of(head: MarginHead) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}


def tracked_scale(head: MarginHead) -> float:
    return float(head.state_dict()["loss.scale.value"])


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_loss_is_the_mean_over_the_batch(name: str) -> None:
    head = head_of(catalog.get(name))
    x_ND, label_N = batch()
    loss = build(catalog.get(name), num_classes=CLASSES, class_counts=COUNTS)
    loss.generator = generator(9)
    mean, losses_N = head(x_ND, label_N), loss(x_ND, head.weight, label_N)
    assert mean.shape == ()
    assert losses_N.shape == label_N.shape
    torch.testing.assert_close(mean, losses_N.mean(), rtol=0, atol=0)


# State


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_state_is_the_weights_and_what_the_loss_tracks_or_learns(name: str) -> None:
    head = head_of(catalog.get(name))
    tracked, learned = TRACKED.get(name, set()), LEARNED.get(name, set())
    assert set(head.state_dict()) == {"weight"} | tracked | learned
    assert {key for key, _ in head.named_parameters()} == {"weight"} | learned
    assert head.weight.shape == ((18 if name == "subcenter_arcface" else 6), DIM)
    assert head.loss.diagnose() is None


@pytest.mark.parametrize("name", TRACKED)
def test_training_moves_what_a_loss_tracks(name: str) -> None:
    head = head_of(catalog.get(name))
    before = state_of(head)
    head(*batch())
    assert all((state_of(head)[key] != before[key]).all() for key in TRACKED[name])
    assert torch.equal(head.weight, before["weight"])


@pytest.mark.parametrize("name", LEARNED)
def test_training_teaches_what_a_loss_learns(name: str) -> None:
    head = head_of(catalog.get(name))
    head(*batch()).backward()
    for key in LEARNED[name]:
        gradient = head.get_parameter(key).grad
        assert gradient is not None
        assert (gradient != 0).all()


@pytest.mark.parametrize("name", catalog.NAMES)
def test_eval_moves_nothing_and_repeats_itself(name: str) -> None:
    head = head_of(catalog.get(name))
    head(*batch())
    head.eval()
    before = state_of(head)
    first = head(*batch(1))
    head(*batch(2, count=1))
    assert torch.equal(head(*batch(1)), first)
    assert_same(state_of(head), before)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_a_saved_head_continues_as_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    """Loaded with `weights_only`; two more steps of training give the same losses, weights and state, bit for bit."""
    trained, fresh = head_of(catalog.get(name)), head_of(catalog.get(name), seed=1)
    for seed in range(2):
        step(trained, seed)
    torch.save(trained.state_dict(), tmp_path / "head.pt")
    fresh.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    trained.loss.generator, fresh.loss.generator = generator(4), generator(4)
    for seed in range(2, 4):
        assert step(trained, seed) == step(fresh, seed)
    assert_same(state_of(trained), state_of(fresh))
    assert torch.equal(fresh.eval()(*batch(5)), trained.eval()(*batch(5)))


def step(head: MarginHead, seed: int) -> float:
    """A step of plain gradient descent."""
    loss: Tensor = head(*batch(seed))
    grads = torch.autograd.grad(loss, list(head.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(head.parameters(), grads, strict=True):
            parameter.sub_(1e-3 * grad)
    return loss.item()


@pytest.mark.parametrize("name", catalog.NAMES)
def test_a_deep_copy_goes_its_own_way(name: str) -> None:
    head = head_of(catalog.get(name))
    before = state_of(head)
    twin = copy.deepcopy(head)
    twin.loss.generator = generator(9)
    wanted = twin(*batch()).item()
    step(twin, 1)
    assert_same(state_of(head), before)
    assert head(*batch()).item() == wanted


def test_adacos_says_when_its_scale_has_diverged() -> None:
    loss = build(catalog.adacos_dynamic(), num_classes=CLASSES)
    assert loss.diagnose() is None
    for scale in (float("inf"), float("nan"), 0.0, -1.0, 2000.0):
        loss.load_state_dict({"scale.value": torch.tensor(scale)})
        assert loss.diagnose() == f"AdaCos's dynamic scale diverged: it is {scale:g}, and must lie in (0, 1024]"


def test_learned_margins_out_of_range_count_as_the_nearest_in_it_in_eval_too() -> None:
    """As a step left them; eval reads them so without moving them."""
    head, within = head_of(catalog.adaptiveface()), head_of(catalog.adaptiveface())
    outside_C = torch.tensor([-0.5, 0.2, 1.5, 0.0, 1.0, 0.4])
    with torch.no_grad():
        head.get_parameter("loss.margin.margin_C").copy_(outside_C)
        within.get_parameter("loss.margin.margin_C").copy_(outside_C.clamp(0, 1))
    assert torch.equal(head.eval()(*batch()), within.eval()(*batch()))
    assert torch.equal(head.state_dict()["loss.margin.margin_C"], outside_C)


# A change of loss


def test_use_changes_the_loss_and_keeps_the_class_weights() -> None:
    head, direct = head_of(catalog.softmax()), head_of(catalog.arcface())
    weight = head.weight
    head.use(catalog.arcface())
    assert head.weight is weight
    assert head.loss.spec == catalog.arcface()
    assert torch.equal(head(*batch()), direct(*batch()))


def test_use_carries_adacos_scale_where_both_losses_track_it() -> None:
    head = head_of(catalog.adacos_dynamic())
    at_start = tracked_scale(head)
    head(*batch())
    tracked = tracked_scale(head)
    head.use(catalog.adacos_dynamic().replace(weight=2))
    assert tracked_scale(head) == tracked != at_start
    head.use(catalog.softmax())
    assert "loss.scale.value" not in head.state_dict()
    head.use(catalog.adacos_dynamic())
    assert tracked_scale(head) == at_start


def test_use_carries_what_both_losses_track_where_one_tracks_more() -> None:
    head = head_of(catalog.curricularface().replace(scale=AdaCosScale()))
    head(*batch())
    scale, t = tracked_scale(head), head.state_dict()["loss.negative.t"].item()
    assert t != 0
    head.use(catalog.arcface().replace(scale=AdaCosScale()))
    assert tracked_scale(head) == scale
    head.use(catalog.curricularface())
    assert head.state_dict()["loss.negative.t"].item() == 0
    head.loss.load_state_dict({"negative.t": torch.tensor(t)})
    head.use(catalog.curricularface(margin_rad=0.3, scale=32))
    assert head.state_dict()["loss.negative.t"].item() == t


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (catalog.uniface(), catalog.uniface(margin=0.2), "loss.objective.threshold"),
        (catalog.adaptiveface(), catalog.adaptiveface(strength=10), "loss.margin.margin_C"),
        (catalog.sphereface2_c(), catalog.sphereface2_c(margin=0.2), "loss.objective.bias"),
    ],
    ids=["uniface", "adaptiveface", "sphereface2_c"],
)
def test_use_keeps_the_parameters_that_an_optimiser_holds(old: LossSpec, new: LossSpec, key: str) -> None:
    """What both losses learn stays the same object: an optimiser made before the change goes on teaching it."""
    head = head_of(old)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    step(head, 0)
    parameter, value = head.get_parameter(key), head.get_parameter(key).detach().clone()
    head.use(new)
    assert head.get_parameter(key) is parameter
    assert torch.equal(parameter, value)
    head(*batch()).backward()
    optimiser.step()
    assert not torch.equal(head.get_parameter(key), value)


def test_use_hands_on_the_generator_of_random_margins() -> None:
    head, direct = head_of(catalog.elasticface_arc()), head_of(catalog.elasticface_cos())
    head.use(catalog.elasticface_cos())
    assert torch.equal(head(*batch()), direct(*batch()))


def test_use_refuses_another_number_of_centers() -> None:
    with pytest.raises(ValueError, match=r"^the head has 1 class weights a class, but the loss has centers=3$"):
        head_of(catalog.arcface()).use(catalog.subcenter_arcface())


@pytest.mark.parametrize("training", [True, False])
def test_use_keeps_to_training_or_eval(training: bool) -> None:
    head = head_of(catalog.softmax()).train(training)
    head.use(catalog.adacos_dynamic())
    at_start = tracked_scale(head)
    head(*batch())
    assert (tracked_scale(head) != at_start) == training


def test_initial_weights_repeat_under_the_passed_generator() -> None:
    one, same, other = (head_of(catalog.softmax(), seed).weight for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    wide = MarginHead(catalog.softmax(), 100, 512, generator=generator()).weight
    assert wide.norm(dim=1).mean().item() == pytest.approx(1, abs=0.02)


# Refusals


@pytest.mark.parametrize("shape", [(4, DIM + 1), (DIM,), (4, DIM, 1)])
def test_embeddings_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole sentence is compared)
        head_of(catalog.softmax())(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))
    assert str(raised.value) == f"embeddings must be N×{DIM}, but got shape {shape}"


@pytest.mark.parametrize(
    ("name", "classes", "sentence"),
    [
        ("softmax", 1, "num_classes must be at least 2, but got num_classes=1"),
        ("p2sgrad", 0, "num_classes must be at least 2, but got num_classes=0"),
        ("adacos_fixed", 2, r"AdaCos needs num_classes >= 3 \(its scale is 0 below\), but got num_classes=2"),
        ("adacos_dynamic", 2, r"AdaCos needs num_classes >= 3 \(its scale is 0 below\), but got num_classes=2"),
    ],
)
def test_too_few_classes_are_refused(name: str, classes: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        MarginHead(catalog.get(name), classes, DIM)


def test_class_sizes_are_asked_for_where_a_margin_needs_them() -> None:
    with pytest.raises(ValueError, match=r"^margin 'class_size' needs class_counts"):
        MarginHead(catalog.class_size(), CLASSES, DIM)


@pytest.mark.parametrize(("centers", "rows"), [(1, 6), (3, 18)])
def test_class_weights_of_another_count_are_refused(centers: int, rows: int) -> None:
    loss = build(catalog.arcface().replace(centers=centers), num_classes=CLASSES)
    x_ND, label_N = batch()
    sentence = f"^the loss was built for num_classes=6 and needs {rows} class weights, but got 7$"
    with pytest.raises(ValueError, match=sentence):
        loss(x_ND, torch.randn(7, DIM, generator=generator()), label_N)


# A toy problem: six noisy clusters. Each loss must fall below its level, and each sample be nearest to its own class.
# Some keep a floor: small scales (AdaCos: .28 at s = √2·log 5), regularizers, P2SGrad's and SphereFace2's own minima.

LEVELS = {
    "adacos_dynamic": 0.8,
    "adacos_fixed": 0.35,
    "adaptiveface": 0.5,
    "magface": 3.6,
    "p2sgrad": 0.03,
    "sface": 0.01,
    "sphereface2_a": 0.05,
    "sphereface2_c": 0.05,
    "sphereface2_m": 0.05,
    "sphereface_plus": 0.06,
    "sphereface_r_nfn": 0.06,
    "sphereface_r_sfn": 0.6,
    "uniface": 0.02,
}


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_loss_trains_a_toy_problem(name: str) -> None:
    centre_CD = 3 * torch.eye(CLASSES, DIM)
    label_N = torch.arange(60) % CLASSES
    x_ND = centre_CD[label_N] + 0.3 * torch.randn(60, DIM, generator=generator(5))
    network = nn.Linear(DIM, DIM)
    with torch.no_grad():
        network.weight.copy_(torch.randn(DIM, DIM, generator=generator(6)) / DIM**0.5)
        network.bias.zero_()
    head = head_of(catalog.get(name))
    optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.02)
    first = head(network(x_ND), label_N).item()
    for _ in range(100):
        optimiser.zero_grad()
        loss = head(network(x_ND), label_N)
        loss.backward()
        optimiser.step()
    assert loss.item() < LEVELS.get(name, 0.001) < first
    w_CKD = nn.functional.normalize(head.weight).view(CLASSES, -1, DIM)
    cos_NC = torch.einsum("nd,ckd->nck", nn.functional.normalize(network(x_ND)), w_CKD).amax(2)
    assert torch.equal(cos_NC.argmax(1), label_N)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_two_batches_may_share_a_backward(name: str) -> None:
    """Two views of a batch, summed before one backward, give the sum of their gradients."""
    x_ND, label_N = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    head = MarginHead(catalog.get(name), 10, 8, class_counts=[3] * 10, generator=torch.Generator().manual_seed(1))
    (head(x_ND, label_N) + head(1.1 * x_ND, label_N)).backward()
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()
    assert head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", catalog.NAMES)
def test_a_head_can_be_pickled(name: str) -> None:
    """`torch.multiprocessing` and `torch.save(head)` do it."""
    head = MarginHead(catalog.get(name), 10, 8, class_counts=[3] * 10).eval()
    again = pickle.loads(pickle.dumps(head))  # noqa: S301 (our own bytes)
    x_ND, label_N = torch.randn(6, 8), torch.arange(6)
    assert torch.equal(again(x_ND, label_N), head(x_ND, label_N))


@pytest.mark.parametrize("shape", [(3,), (1,), (6, 1)])
def test_labels_must_be_one_for_each_embedding(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"labels must be one for each .* got shape \({shape[0]},.*for 6 embeddings"):
        MarginHead(catalog.arcface(), 10, 8)(torch.randn(6, 8), torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.bool])
def test_labels_must_be_int64(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"^labels must be int64, but are {name}; use labels\.long\(\)$"):
        MarginHead(catalog.arcface(), 10, 8)(torch.randn(6, 8), torch.zeros(6, dtype=dtype))


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch must have one embedding at least"):
        MarginHead(catalog.adacos_dynamic(), 10, 8)(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))


def test_a_negative_label_is_no_class_of_a_sampled_head_either() -> None:
    head = MarginHead(catalog.cosface(), 50, 8, sample_rate=0.5)
    with pytest.raises(RuntimeError, match="index -1 is out of bounds"):
        head(torch.randn(3, 8), torch.tensor([4, -1, 7]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"impl": "chunk"}, "impl must be one of auto, plain, chunked, triton, but got impl='chunk'"),
        ({"memory": "Store"}, "memory must be one of store, recompute, but got memory='Store'"),
        ({"gradient_dtype": "bf16"}, "gradient_dtype must be one of float32, bfloat16, but got"),
    ],
)
def test_an_unknown_option_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        MarginHead(catalog.cosface(), 50, 8, **options)
    with pytest.raises(ValueError, match=f"^{sentence.replace('plain, ', '')}"):
        ShardedMarginHead(catalog.cosface(), 50, 8, **options)


def test_a_learned_bias_stays_with_its_objective_and_scale() -> None:
    head = MarginHead(catalog.sphereface2_c(scale=64), 10, 8)
    fresh = MarginHead(catalog.sphereface2_c(scale=10), 10, 8).state_dict()["loss.objective.bias"]
    held = head.state_dict()["loss.objective.bias"].clone()
    head.use(catalog.sphereface2_c(scale=64, lw=25.0))
    assert torch.equal(head.state_dict()["loss.objective.bias"], held)
    head.use(catalog.sphereface2_c(scale=10))
    assert torch.equal(head.state_dict()["loss.objective.bias"], fresh)


@pytest.mark.parametrize(
    "target", [parts.ModulatingTarget(u=10.0), parts.ModulatingBinsTarget(u=(3.0,) * 10)], ids=lambda part: part.kind
)
@pytest.mark.parametrize("scale", [parts.FeatureNormScale(), parts.SoftNormScale()], ids=lambda part: part.kind)
def test_an_embedding_of_zeros_spoils_no_one_elses_gradient(target: parts.TargetMap, scale: parts.Scale) -> None:
    head = MarginHead(LossSpec(target=target, scale=scale), 10, 8)
    x_ND = torch.randn(6, 8)
    x_ND[2] = 0
    loss = head(x_ND, torch.arange(6))
    loss.backward()
    assert loss.isfinite()
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()
