import pytest
import torch
from torch import nn

from trainers import Recipe, build_network
from trainers.recipe import NetworkRecipe

PARAMETERS = {
    "iresnet18": 24_025_600,
    "iresnet34": 34_139_328,
    "iresnet50": 43_590_848,
    "iresnet100": 65_156_160,
    "mobilefacenet": 2_059_520,
}
"""Of `r18`, `r34`, `r50`, `r100` and `mbf` in InsightFace's arcface_torch (7fadd42) for 512 dimensions."""

SMALL = ("iresnet18", "mobilefacenet")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _network(name: str, image_shape: tuple[int, int, int], *, dim: int = 32, seed: int = 0) -> nn.Module:
    recipe = NetworkRecipe(network=name, embedding_dim=dim)
    return build_network(recipe, image_shape=image_shape, generator=_generator(seed))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    network = _network(name, (3, 112, 112), dim=512)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("image_shape", [(1, 16, 16), (3, 33, 20), (1, 112, 112)])
def test_any_image_gives_embeddings_of_its_own(name: str, image_shape: tuple[int, int, int]) -> None:
    embeddings_ND = _network(name, image_shape)(torch.rand(3, *image_shape, generator=_generator()))
    assert embeddings_ND.shape == (3, 32)
    assert embeddings_ND.dtype == torch.float32
    assert embeddings_ND.std(0).min() > 0.5


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_from_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, again, other = (_network(name, (1, 16, 16), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["project.weight"], other["project.weight"])


@torch.no_grad()
def test_initial_weights_are_spread_as_in_the_reference() -> None:
    iresnet, mobile = _network("iresnet18", (3, 112, 112), dim=512), _network("mobilefacenet", (3, 112, 112), dim=512)
    for module in iresnet.modules():
        if isinstance(module, nn.Conv2d):
            assert float(module.weight.std()) == pytest.approx(0.1, rel=0.05)
    linear = iresnet.get_submodule("project")
    assert isinstance(linear, nn.Linear)
    bound = (512 * 7 * 7) ** -0.5
    assert bound * 0.99 < float(linear.weight.abs().max()) <= bound
    assert 0 < float(linear.bias.abs().max()) <= bound
    for module in mobile.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_an_iresnet_does_not_learn_the_embedding_s_scale() -> None:
    network = _network("iresnet18", (1, 16, 16))
    embeddings_ND = network(torch.rand(4, 1, 16, 16, generator=_generator()))
    (embeddings_ND * torch.rand(4, 32, generator=_generator())).sum().backward()
    still = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert still == ["normalise.weight"]
    assert network.get_parameter("normalise.weight").eq(1).all()


@pytest.mark.parametrize("name", ["vgg", "timm:", "timm:a b", "a.b", ":f", "m:", "m:f:g", "m.:f", "1m:f", "m:f()"])
def test_a_name_that_can_be_no_network_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"network\n.*must be conv4, .*'timm:NAME' or 'module:factory', but got"):
        Recipe(network=name)
