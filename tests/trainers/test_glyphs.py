import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from trainers.glyphs import PARTS, GlyphStyle, Part, draw_identities, draw_images, glyphs

SMALL = GlyphStyle(train_identities=20, train_images_each=6, held_out_identities=15, held_out_images_each=4)
STILL = replace(
    SMALL,
    jitter=0.0,
    rotation_rad=0.0,
    shear=0.0,
    stretch=0.0,
    shift=0.0,
    radius=(0.08, 0.08),
    softness=(0.1, 0.1),
    occlusion_probability=0.0,
    noise=(0.0, 0.0),
)


def _digest(part: Part, seed: int) -> str:
    return hashlib.sha256(glyphs(part, seed=seed, image_size=32, style=SMALL).images.tobytes()).hexdigest()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_the_stated_identities_and_images(part: Part) -> None:
    drawn = glyphs(part, seed=0, image_size=32, style=SMALL)
    identities, each = (20, 6) if part == "train" else (15, 4)
    assert drawn.images.shape == (identities * each, 1, 32, 32)
    assert drawn.images.dtype == np.uint8
    assert np.bincount(drawn.labels).tolist() == [each] * identities


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    script = (
        "import hashlib; from trainers.glyphs import GlyphStyle, glyphs; "
        f"drawn = glyphs('choice', seed=7, image_size=32, style={SMALL!r}); "
        "print(hashlib.sha256(drawn.images.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == _digest("choice", 7)


def test_seeds_and_parts_draw_different_glyphs() -> None:
    digests = {_digest(part, seed) for part in PARTS for seed in (0, 1)}
    assert len(digests) == 2 * len(PARTS)


def test_no_two_identities_are_alike_and_all_stay_inside() -> None:
    points_ISK2 = draw_identities(np.random.default_rng(0), 200, GlyphStyle())
    flat = points_ISK2.reshape(200, -1)
    gaps = np.abs(flat[:, None] - flat[None]).max(axis=-1) + np.eye(200)
    assert gaps.min() > GlyphStyle().jitter
    assert np.abs(points_ISK2).max() <= 0.75


def test_a_still_stroke_is_a_soft_band_around_its_spline() -> None:
    points_K2 = np.array([[-0.6, -0.5], [0.1, -0.6], [0.5, 0.0], [0.2, 0.6], [-0.5, 0.5]])
    points_NSK2 = points_K2[None, None].astype(np.float32)
    image = draw_images(np.random.default_rng(0), points_NSK2, STILL, image_size=32)[0, 0]

    t = np.linspace(0, 1, 400)[:, None]
    basis = ((1 - t) ** 2, 1 + 2 * t - 2 * t**2, t**2)
    spans = zip(points_K2, points_K2[1:], points_K2[2:], strict=False)
    curve = np.concatenate([sum(b * p for b, p in zip(basis, span, strict=True)) / 2 for span in spans])
    centres = (np.arange(32) + 0.5) / 16 - 1
    pixels = np.stack(np.meshgrid(centres, centres, indexing="xy"), axis=-1)
    distance = np.linalg.norm(pixels[:, :, None] - curve, axis=-1).min(axis=-1)
    expected = 255 * (1 - np.clip((0.08 - distance) / 0.1 + 0.5, 0, 1))
    # The spline is drawn as four straight segments a span.
    np.testing.assert_allclose(image, expected, atol=16)
    assert np.abs(image - expected).mean() < 1


def test_a_larger_image_shows_the_same_glyph() -> None:
    points_NSK2 = draw_identities(np.random.default_rng(1), 10, STILL)
    small, large = (
        draw_images(np.random.default_rng(2), points_NSK2, STILL, image_size=size).astype(float) for size in (32, 64)
    )
    halved = large.reshape(10, 1, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.abs(small - halved).mean() < 4


def test_images_of_a_glyph_resemble_each_other_but_pixels_alone_do_not_tell_glyphs_apart() -> None:
    drawn = glyphs("choice", seed=0, image_size=32)
    pixels_NP = drawn.images.reshape(len(drawn.labels), -1) / 255.0
    pixels_NP -= pixels_NP.mean(axis=1, keepdims=True)
    pixels_NP /= np.linalg.norm(pixels_NP, axis=1, keepdims=True)
    cos_NN = pixels_NP @ pixels_NP.T - 2 * np.eye(len(pixels_NP))
    rank1 = (drawn.labels[cos_NN.argmax(axis=1)] == drawn.labels).mean()
    assert 10 / drawn.classes < rank1 < 0.8
