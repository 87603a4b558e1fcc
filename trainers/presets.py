"""What a recipe and an image size should be for each kind of image, where the user does not say."""

from trainers.task import Kind

_IMAGE_SIZES: dict[Kind, int] = {"drawing": 32, "photo": 48}


def image_size(kind: Kind) -> int:
    """Side of the decoded images in pixels."""
    return _IMAGE_SIZES[kind]


def recipe_defaults(kind: Kind, *, embedded: bool) -> dict[str, object]:
    """The fields of `Recipe` that depend on the data, as plain values to lay a user's own over.

    A mirrored face is the same person, a mirrored character is another character: only photographs are flipped. The
    embedded glyphs take a network and a horizon that one core trains in ten seconds
    (`tests/bench/glyph_hardness.py` shows that they still rank losses). On drawings the blend told better than TAR@1e-3
    which loss has the better TAR@1e-3 on other identities (`tests/bench/fidelity.py`; on the glyphs
    `tests/bench/rates.py`). At a learning rate of .2 seven losses of scales up to 32 did better on the average than at
    .1, AdaCos among those that gained most (`tests/bench/rates.py`).
    """
    if kind == "drawing":
        size = {"horizon_epochs": 8, "width": 16} if embedded else {"horizon_epochs": 6, "width": 32}
        return {**size, "learning_rate": 0.2, "reward": "blend", "augmentation": {"flip": False}}
    return {
        "horizon_epochs": 12,
        "width": 32,
        "learning_rate": 0.2,
        "reward": "tar_at_far_1e-2",
        "augmentation": {"flip": True, "rotate_degrees": 5, "scale": 0.05, "shift": 0.04},
    }
