import pytest
import torch
from torch import Tensor

from trainers.augment import augment
from trainers.recipe import Augmentation

STILL = Augmentation(flip=False, rotate_degrees=0, scale=0, shift=0)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def _blob(count: int, side: int = 33, sigma: float = 3.0) -> Tensor:
    """Copies of a round spot at the centre, N×1×side×side."""
    axis = torch.arange(side) - side // 2
    spot = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    return spot.expand(count, 1, side, side)


def _centroid(images: Tensor) -> Tensor:
    """Mean (x, y) of each image's brightness in pixels from the centre."""
    axis = torch.arange(images.shape[-1]) - images.shape[-1] // 2
    weight = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
    return torch.stack([(weight.sum(1) * axis).sum(1), (weight.sum(2) * axis).sum(1)], dim=1)


def test_nothing_switched_on_changes_nothing() -> None:
    images = torch.rand(4, 3, 16, 16)
    assert augment(images, STILL, _generator()) is images


def test_flip_mirrors_some_images_left_to_right_and_leaves_the_others() -> None:
    images = torch.rand(64, 1, 16, 16)
    changed = augment(images, STILL.model_copy(update={"flip": True}), _generator())
    same = (changed == images).flatten(1).all(1)
    mirrored = (changed == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_shift_moves_by_up_to_its_share_of_the_side_in_both_directions() -> None:
    images = augment(_blob(256), STILL.model_copy(update={"shift": 0.2}), _generator())
    offset = _centroid(images)
    assert offset.abs().max() == pytest.approx(0.2 * 33, rel=0.05)
    assert offset.mean(0).abs().max() < 0.6
    assert (offset[:, 0] - offset[:, 1]).abs().max() > 5


def test_scale_makes_things_larger_and_smaller_by_up_to_its_share() -> None:
    images = augment(_blob(256), STILL.model_copy(update={"scale": 0.3}), _generator())
    side_ratio = (images.sum((1, 2, 3)) / _blob(1).sum()).sqrt()
    assert side_ratio.max() == pytest.approx(1.3, rel=0.02)
    assert side_ratio.min() == pytest.approx(0.7, rel=0.02)


def test_rotation_turns_by_up_to_its_angle_and_keeps_distances() -> None:
    off_centre = _blob(256).roll(8, dims=-1)
    offset = _centroid(augment(off_centre, STILL.model_copy(update={"rotate_degrees": 30}), _generator()))
    angle_degrees = torch.rad2deg(torch.atan2(offset[:, 1], offset[:, 0]))
    assert angle_degrees.max() == pytest.approx(30, abs=1)
    assert angle_degrees.min() == pytest.approx(-30, abs=1)
    assert (offset.norm(dim=1) - 8).abs().max() < 0.4


def test_what_lies_outside_repeats_the_border() -> None:
    images = torch.full((8, 1, 16, 16), 0.75)
    changed = augment(images, Augmentation(rotate_degrees=45, scale=0.5, shift=0.5), _generator())
    torch.testing.assert_close(changed, images)


def test_the_generator_decides_everything() -> None:
    images = torch.rand(8, 1, 16, 16)
    one, again = (augment(images, Augmentation(), _generator()) for _ in range(2))
    other = augment(images, Augmentation(), torch.Generator().manual_seed(6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
