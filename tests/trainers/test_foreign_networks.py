"""Networks of the user's, which these functions stand for, and of timm's."""

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from search_space import LossSchedule, catalog
from trainers import Numerics, Recipe, Task, build_network, embeddings, train
from trainers.foreign_networks import NetworkError
from trainers.networks import check_network
from trainers.recipe import NetworkRecipe

SHAPE = (1, 16, 16)


def plain(image_shape: tuple[int, int, int], embedding_dim: int) -> nn.Module:
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, embedding_dim), nn.Dropout(0.1))


def too_wide(image_shape: tuple[int, int, int], embedding_dim: int) -> nn.Module:
    return plain(image_shape, embedding_dim + 1)


def not_a_network(image_shape: tuple[int, int, int], embedding_dim: int) -> int:
    return embedding_dim


def failing(image_shape: tuple[int, int, int], embedding_dim: int) -> nn.Module:
    raise RuntimeError("no weights here\nand more")


NUMBER = 3


def _recipe(name: str) -> NetworkRecipe:
    return NetworkRecipe(network=f"{__name__}:{name}", embedding_dim=8)


def _built(recipe: NetworkRecipe, seed: int = 0) -> nn.Module:
    return build_network(recipe, image_shape=SHAPE, generator=torch.Generator().manual_seed(seed))


def test_weights_of_a_given_network_follow_from_the_generator() -> None:
    before = torch.get_rng_state()
    one, again, other = (_built(_recipe("plain"), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)


def test_a_given_network_is_trained_and_rebuilt_from_its_checkpoint(toy_task: Task) -> None:
    recipe = Recipe(network=_recipe("plain").network, embedding_dim=8, batch_size=32, reward="rank1")
    schedule = LossSchedule.constant(catalog.softmax(16))
    outcome, checkpoint = train(schedule, toy_task, recipe=recipe, numerics=Numerics(), seed=0, epochs=2)
    assert checkpoint is not None
    assert outcome.history[1]["train/loss"] < outcome.history[0]["train/loss"]
    embeddings_ND = embeddings(checkpoint, toy_task.reward.images, recipe=recipe, numerics=Numerics())
    assert embeddings_ND.shape == (len(toy_task.reward.labels), 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("too_wide", r"must give N×8 embeddings for .*, but for two images it gave a tensor of shape 2×9"),
        ("not_a_network", "but for two images it gave a int"),
        ("failing", r"failed for image_shape=\(1, 16, 16\), embedding_dim=8 \(RuntimeError: no weights here\)"),
        ("NUMBER", "must be a callable, but .* has a int of that name"),
        ("absent", "must be a callable, but .* has nothing of that name"),
    ],
)
def test_what_is_wrong_with_a_given_network_is_said(name: str, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        check_network(_recipe(name), image_shape=SHAPE)


def test_modules_that_are_missing_or_broken_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match="needs the module 'no_such_module', which cannot be found; install it"):
        check_network(NetworkRecipe(network="no_such_module.inner:f"), image_shape=SHAPE)
    monkeypatch.setitem(sys.modules, "broken", None)
    with pytest.raises(NetworkError, match="needs the module 'broken'"):
        check_network(NetworkRecipe(network="broken:f"), image_shape=SHAPE)


class _Pooled(nn.Module):
    """What timm makes, as far as it is used here."""

    def __init__(self, in_chans: int, sides: tuple[int, ...] | None) -> None:
        super().__init__()
        self.sides = sides
        self.layer = nn.Conv2d(in_chans, 6, 3)

    def forward(self, x_NKHW: Tensor) -> Tensor:
        assert self.sides in (None, tuple(x_NKHW.shape[2:]))
        pooled_NF: Tensor = self.layer(x_NKHW).mean((2, 3))
        return pooled_NF


def _create_model(
    name: str, *, pretrained: bool, num_classes: int, in_chans: int, **size: tuple[int, ...]
) -> nn.Module:
    assert (pretrained, num_classes) == (False, 0)
    if name == "convolutional" and size:
        raise TypeError("unexpected keyword argument 'img_size'")
    return _Pooled(in_chans, size.get("img_size"))


@pytest.fixture
def stand_in_for_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's three functions that are used, since timm itself is an extra."""
    names: dict[str, Callable[..., object]] = {
        "create_model": _create_model,
        "is_model": lambda name: name in ("convolutional", "transformer"),
        "list_models": lambda pattern: [n for n in ("convolutional", "transformer") if n.startswith(pattern[:-1])],
    }
    module = types.ModuleType("timm")
    vars(module).update(names, __version__="1.0")
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("stand_in_for_timm")
@pytest.mark.parametrize("name", ["convolutional", "transformer"])
def test_a_model_of_timm_gets_a_projection(name: str) -> None:
    one, again, other = (_built(NetworkRecipe(network=f"timm:{name}", embedding_dim=8), seed) for seed in (1, 1, 2))
    assert one(torch.rand(4, *SHAPE)).shape == (4, 8)
    assert torch.equal(one.get_parameter("body.layer.weight"), again.get_parameter("body.layer.weight"))
    assert torch.equal(one.get_parameter("project.weight"), again.get_parameter("project.weight"))
    assert not torch.equal(one.get_parameter("project.weight"), other.get_parameter("project.weight"))


@pytest.mark.usefixtures("stand_in_for_timm")
@pytest.mark.parametrize(
    ("name", "words"),
    [("convolute", "has no model 'convolute'; there are convolutional"), ("x", r"timm.list_models\(\) lists them")],
)
def test_a_model_that_timm_lacks_is_refused(name: str, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        check_network(NetworkRecipe(network=f"timm:{name}"), image_shape=SHAPE)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match=r"needs timm .*pip install 'lossearch\[timm\]'"):
        check_network(NetworkRecipe(network="timm:resnet18"), image_shape=SHAPE)
