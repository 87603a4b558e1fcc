"""Embeddings as files hold them, templates made of them, and what is refused."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainers.protocols.sets import embedding_set
from trainers.image_source import DataError
from trainers.protocols.embedding_sets import EmbeddingSet, pooled, read_embeddings

EYE = np.eye(3, dtype=np.float32)


def saved(path: Path, **arrays: npt.NDArray[np.generic]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_embeddings_labels_and_columns_are_read(tmp_path: Path) -> None:
    columns = {"labels": np.array([7, 5, 7]), "sex": np.array([*"fmf"])}
    found = read_embeddings(saved(tmp_path / "x.npz", embeddings=EYE.astype(np.float64), **columns))
    assert found.embeddings_ND.dtype == np.float32
    assert found.labels().tolist() == [1, 0, 1]
    assert {name: values.tolist() for name, values in found.columns.items()} == {
        "labels": ["7", "5", "7"],
        "sex": ["f", "m", "f"],
    }


def test_embeddings_of_mirrored_images_are_averaged_in(tmp_path: Path) -> None:
    found = read_embeddings(saved(tmp_path / "x.npz", embeddings=EYE, flipped=EYE[::-1].copy()))
    assert (found.embeddings_ND == (EYE + EYE[::-1]) / 2).all()


def spoilt(value: float) -> npt.NDArray[np.float32]:
    x_ND = EYE.copy()
    x_ND[1] = value
    return x_ND


REFUSED: dict[str, tuple[Mapping[str, npt.NDArray[np.generic]], str]] = {
    "no embeddings": ({"labels": np.arange(3)}, r"lacks the array embeddings; it has labels"),
    "whole numbers": ({"embeddings": np.eye(3, dtype=np.int64)}, r"of floats, but is \(3, 3\) of int64"),
    "one dimension": ({"embeddings": np.ones(3)}, r"images × dimensions of floats, but is \(3,\)"),
    "not finite": ({"embeddings": spoilt(np.nan)}, "embedding of row 1 is not finite"),
    "too large": ({"embeddings": spoilt(1).astype(np.float64) * 1e300}, "embedding of row 0 is not finite"),
    "no direction": ({"embeddings": spoilt(0)}, "embedding of row 1 has no direction: it is 0"),
    "too few labels": ({"embeddings": EYE, "labels": np.arange(2)}, r"labels must be 3 texts or whole numbers"),
    "labels of floats": ({"embeddings": EYE, "labels": np.ones(3)}, r"labels must be 3 texts .* of float64"),
    "flipped of another shape": ({"embeddings": EYE, "flipped": EYE[:2]}, r"but flipped of \(2, 3\)"),
    "objects": ({"embeddings": EYE, "labels": np.array([{}, 1, "a"], dtype=object)}, r"no whole \.npz of plain arrays"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_set_of_embeddings_gets_one_sentence(case: str, tmp_path: Path) -> None:
    arrays, sentence = REFUSED[case]
    with pytest.raises(DataError, match=sentence):
        read_embeddings(saved(tmp_path / "x.npz", **arrays))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.npz cannot be read \(No such file"):
        read_embeddings(tmp_path / "absent.npz")
    with pytest.raises(DataError, match=r"x\.npy must be an \.npz"):
        read_embeddings(tmp_path / "x.npy")


@given(st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_refused_or_gives_plain_embeddings(at: int, value: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder) / "x.npz", embeddings=EYE, labels=np.arange(3))
        content = bytearray(path.read_bytes())
        content[at % len(content)] = value
        path.write_bytes(content[: len(content) - at // 100])
        sentences = []
        try:
            assert read_embeddings(path).embeddings_ND.shape[1] > 0
        except DataError as error:
            sentences.append(str(error))
        assert not [sentence for sentence in sentences if "\n" in sentence]


def test_names_find_rows_by_template_path_or_number() -> None:
    images = embedding_set(EYE, np.arange(3), paths=["c", "a", "b"])
    assert images.rows_of(np.array(["a", "c"]), "a list").tolist() == [1, 0]
    assert embedding_set(EYE, np.arange(3)).rows_of(np.array(["2", "0"]), "a list").tolist() == [2, 0]
    with pytest.raises(
        DataError, match=r"a list names '3', but mine\.npz has neither 'templates' nor 'paths', so that its rows go by"
    ):
        embedding_set(EYE, np.arange(3)).rows_of(np.array(["3"]), "a list")
    with pytest.raises(DataError, match=r"a list names 'a', but mine\.npz has 2 entries of 'paths' of that name"):
        embedding_set(EYE, np.arange(3), paths=["a", "a", "b"]).rows_of(np.array(["a"]), "a list")
    with pytest.raises(DataError, match=r"mine\.npz has no array 'sex', which is asked for; it has embeddings, labels"):
        embedding_set(EYE, np.arange(3)).column("sex", "is asked for")


def test_a_template_is_the_mean_over_media_of_their_means() -> None:
    """The slow loop of the field's code: sum over media of the mean over frames, then unit length."""
    rng = np.random.default_rng(0)
    x_ND = rng.standard_normal((40, 6)).astype(np.float32)
    template_N, media_N = rng.integers(0, 7, 40), rng.integers(0, 3, 40)
    columns = {"templates": [f"t{t}" for t in template_N], "media": [str(m) for m in media_N]}
    found = pooled(embedding_set(x_ND, template_N % 4, **columns, sex=["f" if t % 2 else "m" for t in template_N]))
    for row, name in enumerate(found.columns["templates"]):
        own = template_N == int(name[1:])
        summed = sum(x_ND[own & (media_N == m)].mean(0) for m in np.unique(media_N[own]))
        assert found.embeddings_ND[row] == pytest.approx(summed / np.linalg.norm(summed), abs=1e-6)
        assert found.columns["labels"][row] == str(int(name[1:]) % 4)
        assert found.columns["sex"][row] == ("f" if int(name[1:]) % 2 else "m")
    assert "media" not in found.columns


def test_without_media_every_image_counts_and_without_templates_nothing_changes() -> None:
    images = embedding_set(EYE, np.array([0, 0, 1]), templates=["a", "a", "b"])
    assert pooled(images).embeddings_ND == pytest.approx(np.array([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]]))
    plain = EmbeddingSet(name="x", embeddings_ND=EYE)
    assert pooled(plain) is plain


def test_a_template_of_two_people_or_of_opposite_images_is_refused() -> None:
    with pytest.raises(DataError, match=r"mine\.npz: template a has images of several labels"):
        pooled(embedding_set(EYE, np.array([0, 1, 1]), templates=["a", "a", "b"]))
    with pytest.raises(DataError, match=r"the images of template a cancel out"):
        pooled(embedding_set(np.array([[1, 0], [-1, 0]], np.float32), np.array([0, 0]), templates=["a", "a"]))
