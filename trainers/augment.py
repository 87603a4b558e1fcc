"""Random changes of training images, for a whole batch at once, on the images' device: where things are.
`trainers.looks` changes how they look.

N batch, K colour channels, H×W image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.looks import LOOK_DRAWS, LOOKS, change_looks
from trainers.recipe import Augmentation


def augment(images_NKHW: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Flip, turn, scale and shift each float image at random, then change how it looks. Images span [−1, 1].

    What lies outside an image repeats its border. All draws come from `generator` (on the CPU, so that every device
    sees the same ones). A batch takes the same number of draws whichever moves are switched on, and so many more
    whichever looks are.
    """
    moved_NKHW = _moved(images_NKHW, augmentation, generator)
    if all(getattr(augmentation, look) == 0 for look in LOOKS):
        return moved_NKHW
    return change_looks(moved_NKHW, augmentation, torch.rand(len(images_NKHW), LOOK_DRAWS, generator=generator))


def _moved(images_NKHW: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    draws_N5 = torch.rand(len(images_NKHW), 5, generator=generator).to(images_NKHW.device)
    if augmentation.flip:
        flipped_N = draws_N5[:, 0] < 0.5
        images_NKHW = torch.where(flipped_N[:, None, None, None], images_NKHW.flip(-1), images_NKHW)
    if augmentation.rotate_degrees == augmentation.scale == augmentation.shift == 0:
        return images_NKHW
    grid_NHW2 = F.affine_grid(_affine(draws_N5[:, 1:], augmentation), list(images_NKHW.shape), align_corners=False)
    return F.grid_sample(images_NKHW, grid_NHW2, padding_mode="border", align_corners=False)


def _affine(draws_N4: Tensor, augmentation: Augmentation) -> Tensor:
    """N×2×3 maps from output to input coordinates, in which an image spans [−1, 1]."""
    signed_N4 = 2 * draws_N4 - 1
    angle_N = math.radians(augmentation.rotate_degrees) * signed_N4[:, 0]
    size_N = 1 + augmentation.scale * signed_N4[:, 1]
    shift_N2 = 2 * augmentation.shift * signed_N4[:, 2:]
    cos_N, sin_N = angle_N.cos() / size_N, angle_N.sin() / size_N
    row_x = torch.stack([cos_N, -sin_N, shift_N2[:, 0]], dim=1)
    row_y = torch.stack([sin_N, cos_N, shift_N2[:, 1]], dim=1)
    return torch.stack([row_x, row_y], dim=1)
