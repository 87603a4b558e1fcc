"""Networks: images to embeddings. The proxy networks are small enough to train hundreds of times.

N batch, K colour channels, H×W image, D embedding.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainers import face_networks as face
from trainers.foreign_networks import NetworkError, build_given, build_timm, seeded
from trainers.recipe import NETWORKS, NetworkRecipe

MIN_IMAGE_SIZE = 16
"""The smallest side in pixels: the networks halve an image four times."""

_FACE_BODIES: Mapping[str, Callable[[tuple[int, int, int]], nn.Module]] = {
    **{name: partial(face.iresnet, blocks) for name, blocks in face.IRESNET_BLOCKS.items()},
    "mobilefacenet": face.mobilefacenet,
}


def build_network(recipe: NetworkRecipe, *, image_shape: tuple[int, int, int], generator: torch.Generator) -> nn.Module:
    """The recipe's network for images of `image_shape` (channels, height, width), its weights drawn from `generator`.

    It takes N×K×H×W float images and returns N×D float32 embeddings, not normalised to unit length. Raises
    `ValueError` for images too small to be halved four times, `NetworkError` (one, too) where a network of timm's or
    the user's cannot be had.
    """
    sides = image_shape[1:]
    if min(sides) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"images must be at least {MIN_IMAGE_SIZE} pixels wide and high, but are {sides[1]}x{sides[0]}"
        )
    if recipe.network not in NETWORKS:
        return _foreign(recipe, image_shape, generator)
    with torch.device("meta"):
        if body_for := _FACE_BODIES.get(recipe.network):
            body = body_for(image_shape)
        else:
            body = {"conv4": _conv4, "resnet": _resnet}[recipe.network](image_shape[0], recipe.width)
        features = body(torch.empty(2, *image_shape)).flatten(1).shape[1]
        network = EmbeddingNetwork(body, features, recipe.embedding_dim, bias=recipe.network in face.IRESNET_BLOCKS)
    network.to_empty(device="cpu")
    if recipe.network in face.IRESNET_BLOCKS:
        network.normalise.weight.requires_grad_(False)  # as in the reference: the embedding's scale is not learned
        face.initialise_iresnet(network, generator)
    elif recipe.network == "mobilefacenet":
        face.initialise_mobilefacenet(network, generator)
    else:
        _initialise(network, generator)
    return network


def _foreign(recipe: NetworkRecipe, image_shape: tuple[int, int, int], generator: torch.Generator) -> nn.Module:
    library, _, name = recipe.network.partition(":")
    with seeded(generator):
        if library != "timm":
            return build_given(recipe.network, image_shape, recipe.embedding_dim)
        body, features = build_timm(name, image_shape)
    network = EmbeddingNetwork(body, features, recipe.embedding_dim)
    _initialise(nn.ModuleList([network.project, network.normalise]), generator)
    return network


def check_network(recipe: NetworkRecipe, *, image_shape: tuple[int, int, int]) -> None:
    """Raises `NetworkError` where a network of timm's or the user's cannot be had or does not fit the images."""
    if recipe.network in NETWORKS:
        return
    try:
        build_network(recipe, image_shape=image_shape, generator=torch.Generator())
    except NetworkError:
        raise
    except ValueError as error:
        raise NetworkError(f"network '{recipe.network}': {error}") from error


class EmbeddingNetwork(nn.Module):
    """A convolutional body, a linear map to the embedding and a final batch normalisation in float32.

    `forward` takes N×K×H×W float images and returns N×D float32 embeddings, not normalised to unit length.
    """

    def __init__(self, body: nn.Module, features: int, embedding_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.body = body
        self.project = nn.Linear(features, embedding_dim, bias=bias)
        self.normalise = nn.BatchNorm1d(embedding_dim)

    def forward(self, images_NKHW: Tensor) -> Tensor:
        """Embeddings, N×D."""
        features_NF = self.body(images_NKHW).flatten(1)
        embeddings_ND: Tensor = self.normalise(self.project(features_NF).float())
        return embeddings_ND


def _conv4(channels: int, width: int) -> nn.Module:
    """Four 3×3 convolutions, each followed by batch normalisation, ReLU and a halving."""
    widths = [channels, width, 2 * width, 4 * width, 4 * width]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def _resnet(channels: int, width: int) -> nn.Module:
    """A halved stem and three residual blocks, each of which halves the image (He et al. 2016, Fig. 2)."""
    stem = [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, _Block(width, width), _Block(width, 2 * width), _Block(2 * width, 4 * width))


class _Block(nn.Module):
    """relu(residual(x) + shortcut(x)), at half the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x_NKHW: Tensor) -> Tensor:
        return torch.relu(self.residual(x_NKHW) + self.shortcut(x_NKHW))


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features), generator=generator)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
