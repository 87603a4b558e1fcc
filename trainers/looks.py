"""Random changes of how training images look: resolution, blur, colour, contrast, brightness, and what is covered.

N batch, K colour channels, H×W image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.recipe import Augmentation

LOOKS = ("downscale", "blur_pixels", "colour", "contrast", "brightness", "cutout")
"""The fields of `Augmentation` that are dealt with here, in this order."""

LOOK_DRAWS = 8
"""Random numbers that an image takes."""

_LEVELS = 4
_BLUR_REACH = 3.0
"""In standard deviations."""
_LUMA = (0.299, 0.587, 0.114)
"""How much red, green and blue add to brightness (ITU-R BT.601)."""


def change_looks(images_NKHW: Tensor, augmentation: Augmentation, draws_N8: Tensor) -> Tensor:
    """The images, within [−1, 1], changed by draws from [0, 1) on the CPU; a change of strength 0 is not made."""
    here_N8 = draws_N8.to(images_NKHW.device)
    if augmentation.downscale:
        images_NKHW = _coarsened(images_NKHW, augmentation.downscale, draws_N8[:, 0])
    if augmentation.blur_pixels:
        images_NKHW = _blurred(images_NKHW, augmentation.blur_pixels, here_N8[:, 1])
    factor_N4 = 2 * here_N8[:, 2:5, None, None, None] - 1
    if augmentation.colour and images_NKHW.shape[1] == 3:
        weight_K = torch.tensor(_LUMA, device=images_NKHW.device)
        grey_N1HW = (images_NKHW * weight_K[:, None, None]).sum(1, keepdim=True)
        images_NKHW = _spread(images_NKHW, grey_N1HW, 1 + augmentation.colour * factor_N4[:, 0])
    if augmentation.contrast:
        mean_N111 = images_NKHW.mean((1, 2, 3), keepdim=True)
        images_NKHW = _spread(images_NKHW, mean_N111, 1 + augmentation.contrast * factor_N4[:, 1])
    if augmentation.brightness:
        images_NKHW = images_NKHW + 2 * augmentation.brightness * factor_N4[:, 2]
    if augmentation.cutout:
        images_NKHW = _covered(images_NKHW, augmentation.cutout, here_N8[:, 5:])
    return images_NKHW.clamp(-1, 1)


def _spread(images_NKHW: Tensor, around: Tensor, factor_N111: Tensor) -> Tensor:
    return around + (images_NKHW - around) * factor_N111


def _coarsened(images_NKHW: Tensor, share: float, draw_N: Tensor) -> Tensor:
    """Each image as it is, or at one of `_LEVELS` smaller sizes, the smallest by `share`, and enlarged again."""
    height, width = images_NKHW.shape[2:]
    level_N = (draw_N * (_LEVELS + 1)).long()
    changed_NKHW = images_NKHW.clone()
    for level in range(1, _LEVELS + 1):
        chosen = (level_N == level).nonzero()[:, 0].to(images_NKHW.device)
        factor = 1 - share * level / _LEVELS
        if not len(chosen):
            continue
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        small = F.interpolate(images_NKHW[chosen], size=size, mode="area")
        changed_NKHW[chosen] = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    return changed_NKHW


def _blurred(images_NKHW: Tensor, most_pixels: float, draw_N: Tensor) -> Tensor:
    """Each image under a Gaussian of its own; the border is repeated."""
    count, channels, height, width = images_NKHW.shape
    reach = min(math.ceil(_BLUR_REACH * most_pixels), height - 1, width - 1)
    steps_T = torch.arange(-reach, reach + 1, device=images_NKHW.device)
    kernel_NT = torch.exp(-(steps_T**2) / (2 * (most_pixels * draw_N[:, None]).clamp_min(1e-3) ** 2))
    kernel_NT = kernel_NT / kernel_NT.sum(1, keepdim=True)
    kernel = kernel_NT.repeat_interleave(channels, dim=0)[:, None, None, :]
    planes = F.pad(images_NKHW, [reach] * 4, mode="replicate").view(1, count * channels, height + 2 * reach, -1)
    planes = F.conv2d(planes, kernel, groups=count * channels)
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=count * channels)
    return planes.view_as(images_NKHW)


def _covered(images_NKHW: Tensor, share: float, draws_N3: Tensor) -> Tensor:
    """A square within each image takes its mean colour: side, then place from left and from top are drawn."""
    side_N2 = share * draws_N3[:, :1].expand(-1, 2)
    begin_N2 = draws_N3[:, 1:] * (1 - side_N2)
    inside = []
    for axis, length in enumerate(reversed(images_NKHW.shape[2:])):
        place_L = (torch.arange(length, device=images_NKHW.device) + 0.5) / length
        begin_N1 = begin_N2[:, axis, None]
        inside.append((place_L >= begin_N1) & (place_L < begin_N1 + side_N2[:, axis, None]))
    in_x_NW, in_y_NH = inside
    covered_N1HW = (in_y_NH[:, :, None] & in_x_NW[:, None, :])[:, None]
    return torch.where(covered_N1HW, images_NKHW.mean((2, 3), keepdim=True), images_NKHW)
