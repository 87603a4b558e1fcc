import pytest
import torch
from torch import Tensor

from trainers import presets
from trainers.augment import augment
from trainers.looks import LOOKS
from trainers.recipe import AUGMENTATIONS, Augmentation, Recipe

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


# --- looks ----------------------------------------------------------------------------------------------------------

STRENGTHS = {"downscale": 0.7, "blur_pixels": 2.0, "colour": 0.5, "contrast": 0.5, "brightness": 0.2, "cutout": 0.5}


def _photo(count: int = 64, channels: int = 3, side: int = 24) -> Tensor:
    return 2 * torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1)) - 1


def _look(images: Tensor, **strength: float) -> Tensor:
    return augment(images, STILL.model_copy(update=strength), _generator())


def test_every_look_is_tested_here() -> None:
    assert tuple(STRENGTHS) == LOOKS


def test_without_looks_the_draws_are_those_of_ever() -> None:
    generator, expected = _generator(), _generator()
    augment(_photo(), Augmentation(), generator)
    torch.rand(64, 5, generator=expected)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=expected))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_changes_images_within_their_range_and_by_the_generator_alone(look: str, channels: int) -> None:
    images = _photo(channels=channels)
    before = images.clone()
    one, again = (_look(images, **{look: STRENGTHS[look]}) for _ in range(2))
    assert torch.equal(one, again)
    assert torch.equal(images, before)
    assert one.shape == images.shape
    assert one.abs().max() <= 1
    changed = (one - images).abs().flatten(1).amax(1) > 1e-3
    assert changed.sum() == 0 if (look, channels) == ("colour", 1) else changed.float().mean() > 0.7
    other = augment(images, STILL.model_copy(update={look: STRENGTHS[look]}), torch.Generator().manual_seed(6))
    assert torch.equal(one, other) == ((look, channels) == ("colour", 1))


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_of_hardly_any_strength_changes_hardly_anything(look: str) -> None:
    images = 0.9 * _photo()
    torch.testing.assert_close(_look(images, **{look: 1e-4}), images, atol=2e-3, rtol=0)


def test_brightness_moves_the_mean_both_ways_by_up_to_its_share_of_the_range() -> None:
    images = 0.1 * _photo(256)
    moved = (_look(images, brightness=0.2) - images).mean((1, 2, 3)) / 2
    assert moved.max() == pytest.approx(0.2, rel=0.05)
    assert moved.min() == pytest.approx(-0.2, rel=0.05)


def test_contrast_keeps_the_mean_and_spreads_by_up_to_its_share() -> None:
    images = 0.3 * _photo(256) + 0.2
    changed = _look(images, contrast=0.5)
    torch.testing.assert_close(changed.mean((1, 2, 3)), images.mean((1, 2, 3)))
    ratio = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert ratio.min() == pytest.approx(0.5, rel=0.05)
    assert ratio.max() == pytest.approx(1.5, rel=0.05)


def test_colour_keeps_the_brightness_of_each_pixel_and_changes_how_coloured_it_is() -> None:
    images = 0.3 * _photo(256)
    changed = _look(images, colour=0.5)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((changed * luma).sum(1), (images * luma).sum(1), atol=1e-5, rtol=0)
    ratio = changed.std(1).mean((1, 2)) / images.std(1).mean((1, 2))
    assert ratio.min() == pytest.approx(0.5, rel=0.05)
    assert ratio.max() == pytest.approx(1.5, rel=0.05)


def test_blur_widens_a_spot_by_its_variance_and_keeps_its_sum() -> None:
    spots = _blob(256, sigma=2.0)
    axis = torch.arange(33) - 16
    blurred = _look(spots, blur_pixels=2.0)
    torch.testing.assert_close(blurred.sum((1, 2, 3)), spots.sum((1, 2, 3)), rtol=1e-3, atol=0)
    variance = (blurred[:, 0].sum(1) * axis**2).sum(1) / blurred.sum((1, 2, 3))
    assert variance.max() == pytest.approx(2.0**2 + 2.0**2, rel=0.05)
    assert variance.min() == pytest.approx(2.0**2, rel=0.05)


def test_downscaling_leaves_as_many_details_as_the_smaller_size_has() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(16).expand(64, 1, 32, 32)
    left = _look(stripes, downscale=0.5).std((1, 2, 3))
    assert (left < 0.05).any()
    assert (left == stripes[0].std()).any()
    flat = torch.full((16, 3, 20, 20), 0.25)
    torch.testing.assert_close(_look(flat, downscale=0.9), flat)


def test_cutout_covers_one_square_of_up_to_its_side_with_the_mean() -> None:
    images = _photo(256, side=40)
    changed = _look(images, cutout=0.5)
    covered = (changed != images).any(1)
    heights, widths = covered.any(2).sum(1), covered.any(1).sum(1)
    assert torch.equal(covered.sum((1, 2)), heights * widths)
    assert (heights - widths).abs().max() <= 1
    assert [int(heights.max()), int(heights.min())] == [20, 0]
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(changed[covered[:, None].expand_as(images)], mean[covered[:, None].expand_as(images)])


def test_named_augmentations_are_those_of_their_kinds_and_can_be_named_in_a_recipe() -> None:
    assert augment(images := _photo(), AUGMENTATIONS["none"], _generator()) is images
    for kind in ("photo", "drawing"):
        default = Recipe.model_validate(presets.recipe_defaults(kind, embedded=False)).augmentation
        assert Recipe.model_validate({"augmentation": kind}).augmentation == default == AUGMENTATIONS[kind]
    for named in AUGMENTATIONS.values():
        assert augment(_photo(8), named, _generator()).isfinite().all()
