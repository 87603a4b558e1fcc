"""The embedded data: synthetic glyphs, drawn from a seed. Nothing is shipped or downloaded.

An identity is a few random smooth strokes (quadratic B-splines through random control points). An image redraws them as
another hand would: jittered control points, an affine warp, another stroke width and softness, an occluding disk,
paper noise. Dark ink on light paper, as scanned characters are.

Only elementwise arithmetic touches the pixels (no BLAS, no exp), so that a seed gives the same bytes everywhere.

Shapes: N images, I identities, S strokes an identity, K control points a stroke, T segments a stroke, L = S·T
segments an image, P pixels. Coordinates are in half image sides: the image spans [−1, 1]².
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trainers.task import LabelledImages

FloatArray = npt.NDArray[np.float32]
Part = Literal["train", "reward", "choice", "test"]

PARTS: tuple[Part, ...] = ("train", "reward", "choice", "test")

_SEGMENTS_PER_SPAN = 4
_CHUNK_IMAGES = 16  # distances of a chunk stay in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class GlyphStyle:
    """How many glyphs there are and how much two images of one glyph differ. Ranges are (low, high), uniform.

    The defaults are tuned: hard enough that losses rank clearly, small enough for one core
    (`tests/bench/glyph_hardness.py` shows both). Lengths are in half image sides.
    """

    train_identities: int = 350
    train_images_each: int = 12
    held_out_identities: int = 80
    held_out_images_each: int = 10
    strokes: int = 3
    control_points: int = 5
    spread: float = 0.45
    """Standard deviation of the step from one control point of a stroke to the next."""
    jitter: float = 0.075
    """Standard deviation of a control point from image to image."""
    rotation_rad: float = 0.25
    shear: float = 0.2
    stretch: float = 0.15
    shift: float = 0.12
    radius: tuple[float, float] = (0.05, 0.11)
    """Half the stroke width."""
    softness: tuple[float, float] = (0.05, 0.2)
    """Width of the ramp from ink to paper: the blur."""
    occlusion_probability: float = 0.5
    occlusion_radius: tuple[float, float] = (0.2, 0.45)
    noise: tuple[float, float] = (0.02, 0.15)
    """Standard deviation of the paper noise; ink is 0 and paper 1."""


def draw_identities(rng: np.random.Generator, count: int, style: GlyphStyle) -> FloatArray:
    """Control points of `count` new identities, I×S×K×2, inside [−0.75, 0.75]²."""
    shape = (count, style.strokes, style.control_points, 2)
    steps_ISK2 = rng.normal(0.0, style.spread, shape)
    steps_ISK2[:, :, 0] = rng.uniform(-0.7, 0.7, (count, style.strokes, 2))
    points_ISK2 = np.cumsum(steps_ISK2, axis=2)
    # Folding back at the border keeps strokes inside without piling them up on it.
    folded = 0.75 - np.abs(np.mod(points_ISK2 + 0.75, 3.0) - 1.5)
    return folded.astype(np.float32)


def _warp(rng: np.random.Generator, points_NSK2: FloatArray, style: GlyphStyle) -> FloatArray:
    """Every image's control points under its own jitter and affine map."""
    count = len(points_NSK2)
    jittered = points_NSK2 + rng.normal(0.0, style.jitter, points_NSK2.shape)
    angle = rng.uniform(-style.rotation_rad, style.rotation_rad, count)
    shear = rng.uniform(-style.shear, style.shear, count)
    stretch_N2 = rng.uniform(1 - style.stretch, 1 + style.stretch, (count, 2))
    shift_N2 = rng.uniform(-style.shift, style.shift, (count, 2))
    x = (jittered[..., 0] + shear[:, None, None] * jittered[..., 1]) * stretch_N2[:, None, None, 0]
    y = jittered[..., 1] * stretch_N2[:, None, None, 1]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    return (turned + shift_N2[:, None, None]).astype(np.float32)


def _polylines(points_NSK2: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Start and end points of the segments that follow the quadratic B-splines of the strokes, each N×L×2."""
    t_T = np.linspace(0.0, 1.0, _SEGMENTS_PER_SPAN, endpoint=False, dtype=np.float32)[:, None]
    before, middle, after = (points_NSK2[:, :, k : k + points_NSK2.shape[2] - 2, None] for k in range(3))
    curve = 0.5 * ((1 - t_T) ** 2 * before + (1 + 2 * t_T - 2 * t_T**2) * middle + t_T**2 * after)
    count, strokes = curve.shape[:2]
    last = 0.5 * (points_NSK2[:, :, -2:-1] + points_NSK2[:, :, -1:])
    vertices = np.concatenate([curve.reshape(count, strokes, -1, 2), last], axis=2)
    return vertices[:, :, :-1].reshape(count, -1, 2), vertices[:, :, 1:].reshape(count, -1, 2)


def _pixel_centres(image_size: int) -> FloatArray:
    return (np.arange(image_size, dtype=np.float32) + 0.5) * np.float32(2 / image_size) - 1


def _distances(start_NL2: FloatArray, end_NL2: FloatArray, image_size: int) -> FloatArray:
    """Distance of every pixel centre to the nearest segment, N×P."""
    centres = _pixel_centres(image_size)
    offset_x = centres[None, :, None] - start_NL2[:, None, :, 0]
    offset_y = centres[None, :, None] - start_NL2[:, None, :, 1]
    along_NL2 = end_NL2 - start_NL2
    length2_NL = np.maximum(along_NL2[..., 0] ** 2 + along_NL2[..., 1] ** 2, np.float32(1e-12))
    unit_NL2 = along_NL2 / length2_NL[..., None]
    # Rows and columns are separate until the projection, which keeps all but four passes off the N×P×L array.
    position = (offset_y * unit_NL2[:, None, :, 1])[:, :, None] + (offset_x * unit_NL2[:, None, :, 0])[:, None]
    np.clip(position, 0, 1, out=position)
    gap_x = offset_x[:, None] - position * along_NL2[:, None, None, :, 0]
    gap_y = offset_y[:, :, None] - position * along_NL2[:, None, None, :, 1]
    gap_x *= gap_x
    gap_y *= gap_y
    gap_x += gap_y
    nearest: FloatArray = np.sqrt(gap_x.min(axis=-1))
    return nearest.reshape(len(start_NL2), -1)


def draw_images(
    rng: np.random.Generator, points_NSK2: FloatArray, style: GlyphStyle, *, image_size: int
) -> npt.NDArray[np.uint8]:
    """One new image of each given glyph: uint8, N×1×H×W with H = W = `image_size`."""
    count = len(points_NSK2)
    start_NL2, end_NL2 = _polylines(_warp(rng, points_NSK2, style))
    chunks = [slice(first, first + _CHUNK_IMAGES) for first in range(0, count, _CHUNK_IMAGES)]
    distance_NP = np.concatenate([_distances(start_NL2[chunk], end_NL2[chunk], image_size) for chunk in chunks])

    radius_N1 = rng.uniform(*style.radius, (count, 1)).astype(np.float32)
    softness_N1 = rng.uniform(*style.softness, (count, 1)).astype(np.float32)
    ink_NP = np.clip((radius_N1 - distance_NP) / softness_N1 + 0.5, 0, 1)

    hidden = rng.random((count, 1)) < style.occlusion_probability
    hole_radius_N1 = rng.uniform(*style.occlusion_radius, (count, 1)) * hidden
    hole_N2 = rng.uniform(-0.8, 0.8, (count, 2))
    centres = _pixel_centres(image_size)
    y_P, x_P = np.repeat(centres, image_size), np.tile(centres, image_size)
    ink_NP[(x_P - hole_N2[:, :1]) ** 2 + (y_P - hole_N2[:, 1:]) ** 2 < hole_radius_N1**2] = 0

    noise_NP = rng.standard_normal(ink_NP.shape, dtype=np.float32)
    noise_NP *= rng.uniform(*style.noise, (count, 1)).astype(np.float32)
    grey_NP: npt.NDArray[np.uint8] = np.rint(np.clip(1 - ink_NP + noise_NP, 0, 1) * 255).astype(np.uint8)
    return grey_NP.reshape(count, 1, image_size, image_size)


def glyphs(part: Part, *, seed: int, image_size: int, style: GlyphStyle = GlyphStyle()) -> LabelledImages:
    """The glyphs of one part of the data. Parts share no identity: each draws its own from its own stream."""
    identities = style.train_identities if part == "train" else style.held_out_identities
    images_each = style.train_images_each if part == "train" else style.held_out_images_each
    rng = np.random.default_rng(np.random.SeedSequence([seed, PARTS.index(part)]))
    points_ISK2 = draw_identities(rng, identities, style)
    labels_N = np.repeat(np.arange(identities, dtype=np.int64), images_each)
    return LabelledImages(images=draw_images(rng, points_ISK2[labels_N], style, image_size=image_size), labels=labels_N)
