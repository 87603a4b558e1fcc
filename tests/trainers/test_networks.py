from typing import Literal

import pytest
import torch

from trainers import Recipe, build_network

NETWORKS: list[Literal["conv4", "resnet"]] = ["conv4", "resnet"]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("image_shape", [(1, 16, 16), (3, 17, 31), (1, 48, 48), (2, 33, 20)])
def test_embeddings_have_the_recipe_s_dimension_whatever_the_image_shape(
    network: Literal["conv4", "resnet"], image_shape: tuple[int, int, int]
) -> None:
    recipe = Recipe(network=network, width=4, embedding_dim=10)
    built = build_network(recipe, image_shape=image_shape, generator=_generator())
    embeddings_ND = built(torch.rand(6, *image_shape, generator=_generator()))
    assert embeddings_ND.shape == (6, 10)
    assert embeddings_ND.dtype == torch.float32
    torch.testing.assert_close(embeddings_ND.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    assert embeddings_ND.std(0).min() > 0.5


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_come_from_the_generator_alone(network: Literal["conv4", "resnet"]) -> None:
    recipe = Recipe(network=network, width=4)
    before = torch.get_rng_state()
    one, again, other = (
        build_network(recipe, image_shape=(1, 16, 16), generator=_generator(seed)).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["project.weight"], other["project.weight"])


def test_gradient_reaches_every_parameter() -> None:
    for network in NETWORKS:
        built = build_network(Recipe(network=network, width=4), image_shape=(1, 16, 16), generator=_generator())
        embeddings_ND = built(torch.rand(8, 1, 16, 16, generator=_generator()))
        (embeddings_ND * torch.rand(8, 128, generator=_generator())).sum().backward()
        for name, parameter in built.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_bfloat16_runs_inside_and_float32_comes_out() -> None:
    built = build_network(Recipe(width=4), image_shape=(1, 16, 16), generator=_generator())
    images = torch.rand(8, 1, 16, 16, generator=_generator())
    exact_ND = built(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings_ND = built(images)
    assert embeddings_ND.dtype == torch.float32
    assert 0 < (embeddings_ND - exact_ND).std() < 0.1 * exact_ND.std()


def test_images_too_small_to_halve_four_times_are_refused() -> None:
    with pytest.raises(ValueError, match="images must be at least 16 pixels wide and high, but are 40x15"):
        build_network(Recipe(), image_shape=(1, 15, 40), generator=_generator())
