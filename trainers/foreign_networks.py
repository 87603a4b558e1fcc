"""Networks that others wrote: any model of timm's, any `module:factory` of the user's.

Naming one runs its code, as importing it would. The only module that imports timm.

N batch, K colour channels, H×W image, D embedding.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class NetworkError(ValueError):
    """A network cannot be had or does not fit; the message is one sentence that says what would be right."""


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Let what is drawn from torch's own CPU generator follow from `generator`; torch's is afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


def build_timm(name: str, image_shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """timm's model without its classifier and without trained weights, and how many features it gives.

    Models for one size of image only (vision transformers) are made for that of `image_shape`. Raises `NetworkError`.
    """
    try:
        import timm
    except ImportError as error:
        raise NetworkError(
            f"the network 'timm:{name}' needs timm ({error}); install it with: pip install 'lossearch[timm]'"
        ) from error
    channels, *sides = image_shape
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:6]}*")[:5]
        hint = f"there are {', '.join(near)}" if near else "timm.list_models() lists them"
        raise NetworkError(f"timm {timm.__version__} has no model '{name}'; {hint}")
    try:
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, img_size=tuple(sides))
        except TypeError:  # it takes images of any size
            model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
        features_NF = _output(model, image_shape)
    except Exception as error:
        raise NetworkError(
            f"timm's model '{name}' cannot be made for images of {channels}×{sides[0]}×{sides[1]} ({_said(error)})"
        ) from error
    if not isinstance(features_NF, Tensor) or features_NF.ndim != 2:
        raise NetworkError(f"timm's model '{name}' gives {_described(features_NF)}, not one list of features an image")
    return model, features_NF.shape[1]


def build_given(place: str, image_shape: tuple[int, int, int], embedding_dim: int) -> nn.Module:
    """What the callable at `module:factory` makes when called with `image_shape` (channels, height, width) and
    `embedding_dim`: a module from N×K×H×W float images to N×D embeddings.

    The module is imported as any other: install it, or have its folder on PYTHONPATH. Raises `NetworkError`.
    """
    module_name, _, name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"the network '{place}' needs the module '{error.name}', which cannot be found; install it or put its "
            "folder on PYTHONPATH"
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise NetworkError(f"the module of the network '{place}' cannot be imported ({_said(error)})") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        what = "nothing" if factory is None else f"a {type(factory).__name__}"
        raise NetworkError(f"the network '{place}' must be a callable, but {module_name} has {what} of that name")
    arguments = f"image_shape={image_shape}, embedding_dim={embedding_dim}"
    try:
        network = factory(image_shape, embedding_dim)
        embeddings = _output(network, image_shape) if isinstance(network, nn.Module) else network
    except Exception as error:
        raise NetworkError(f"the network '{place}' failed for {arguments} ({_said(error)})") from error
    if not isinstance(embeddings, Tensor) or embeddings.shape != (2, embedding_dim):
        raise NetworkError(
            f"the network '{place}' must give N×{embedding_dim} embeddings for {arguments}, but for two images it gave "
            f"{_described(embeddings)}"
        )
    return _InFloat32(network)


class _InFloat32(nn.Module):
    """A network whose embeddings are float32 whatever it computes in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_NKHW: Tensor) -> Tensor:
        embeddings_ND: Tensor = self.network(images_NKHW).float()
        return embeddings_ND


def _output(network: nn.Module, image_shape: tuple[int, int, int]) -> object:
    """What the network gives for two black images, in evaluation mode; it is left in training mode."""
    with torch.no_grad():
        found: object = network.eval()(torch.zeros(2, *image_shape))
    network.train()
    return found


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {'×'.join(map(str, value.shape)) or 'none'}"
    return f"a {type(value).__name__}"


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
