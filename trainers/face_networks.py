"""The networks of face recognition, as InsightFace trains them: IResNet and MobileFaceNet, but for their last layers.

`trainers.networks` puts the linear map to the embedding and its batch normalisation behind them. For 3×112×112 images
and 512 dimensions the whole has the layers, the order of operations and the number of parameters of
`recognition/arcface_torch/backbones` (deepinsight/insightface 7fadd42, `iresnet.py` and `mobilefacenet.py`, there
`r18`, `r34`, `r50`, `r100` and `mbf`); for other sizes what meets the feature map is as large as that is.

N batch, K colour channels, H×W image.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

IRESNET_BLOCKS: Mapping[str, Sequence[int]] = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
"""Blocks in each of the four stages."""

_HALVINGS = 4


def iresnet(blocks: Sequence[int], image_shape: tuple[int, int, int]) -> nn.Module:
    """A stem at full size and four stages, each of which halves the image (Duta et al. 2020, "Improved Residual
    Networks"; Deng et al. 2019, §3.1, for the block and the 3×3 stem)."""
    stages: list[nn.Module] = []
    inputs = 64
    for outputs, count in zip((64, 128, 256, 512), blocks, strict=True):
        stages.append(_IResNetBlock(inputs, outputs, stride=2))
        stages += [_IResNetBlock(outputs, outputs, stride=1) for _ in range(count - 1)]
        inputs = outputs
    stem = [nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)]
    return nn.Sequential(*stem, *stages, nn.BatchNorm2d(inputs))


class _IResNetBlock(nn.Module):
    """residual(x) + shortcut(x), without an activation behind the sum."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x_NKHW: Tensor) -> Tensor:
        summed_NKHW: Tensor = self.residual(x_NKHW) + self.shortcut(x_NKHW)
        return summed_NKHW


def initialise_iresnet(network: nn.Module, generator: torch.Generator) -> None:
    """Convolutions from N(0, 0.1²), the linear map as torch draws it, as in the reference."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1, generator=generator)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in (module.weight, module.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        else:
            _reset(module)


def mobilefacenet(image_shape: tuple[int, int, int]) -> nn.Module:
    """Inverted residuals and, in place of a pooling, one weight for each place of the feature map (Chen et al. 2018,
    "MobileFaceNets"), twice as wide as in the paper, as in the reference (`scale=2`)."""
    channels, *sides = image_shape
    height, width = (-(-side // 2**_HALVINGS) for side in sides)
    layers = [
        *_convolution(channels, 128, 3, stride=2),
        *_convolution(128, 128, 3, groups=64),
        _inverted(128, 128, 128, stride=2),
        *(_Residual(_inverted(128, 128, 128, stride=1)) for _ in range(4)),
        _inverted(128, 256, 256, stride=2),
        *(_Residual(_inverted(256, 256, 256, stride=1)) for _ in range(6)),
        _inverted(256, 512, 256, stride=2),
        *(_Residual(_inverted(256, 256, 256, stride=1)) for _ in range(2)),
        *_convolution(256, 512, 1),
        nn.Conv2d(512, 512, (height, width), groups=512, bias=False),
        nn.BatchNorm2d(512),
    ]
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, side: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = side // 2
    convolution = nn.Conv2d(inputs, outputs, side, stride=stride, padding=padding, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.PReLU(outputs)]


def _inverted(inputs: int, inner: int, outputs: int, *, stride: int) -> nn.Module:
    """Widened or not by a 1×1 convolution, a 3×3 one within each channel, and a linear 1×1 one."""
    return nn.Sequential(
        *_convolution(inputs, inner, 1),
        *_convolution(inner, inner, 3, stride=stride, groups=inner),
        nn.Conv2d(inner, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class _Residual(nn.Module):
    """x + residual(x)."""

    def __init__(self, residual: nn.Module) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, x_NKHW: Tensor) -> Tensor:
        summed_NKHW: Tensor = x_NKHW + self.residual(x_NKHW)
        return summed_NKHW


def initialise_mobilefacenet(network: nn.Module, generator: torch.Generator) -> None:
    """Convolutions and the linear map as He et al. 2015 (fan out, ReLU), as in the reference."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        else:
            _reset(module)


def _reset(module: nn.Module) -> None:
    """A normalisation that changes nothing, a PReLU of slope ¼."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.PReLU):
        module.reset_parameters()
