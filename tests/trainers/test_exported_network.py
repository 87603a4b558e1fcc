import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainers import build_network
from trainers.exported_network import (
    DESCRIPTION,
    ONNX,
    WEIGHTS,
    ExportError,
    NetworkDescription,
    can_write_onnx,
    embed_images,
    load_network,
    save_network,
    write_onnx,
)
from trainers.recipe import NetworkRecipe

SHAPE = (1, 24, 24)
IMAGES = np.random.default_rng(0).integers(0, 256, (70, *SHAPE), dtype=np.uint8)


def _trained(name: str) -> tuple[nn.Module, NetworkDescription]:
    """A network whose averages are no longer those of the beginning."""
    recipe = NetworkRecipe(network=name, width=4, embedding_dim=12)
    network = build_network(recipe, image_shape=SHAPE, generator=torch.Generator().manual_seed(5))
    network(torch.from_numpy(IMAGES).float() / 127.5 - 1)
    return network, NetworkDescription(recipe=recipe, image_shape=SHAPE, flip=True)


@pytest.mark.parametrize("name", ["conv4", "resnet", "mobilefacenet"])
def test_a_saved_network_gives_the_same_embeddings(name: str, tmp_path: Path) -> None:
    network, description = _trained(name)
    save_network(network, description, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {DESCRIPTION, WEIGHTS}
    loaded, found = load_network(str(tmp_path))
    assert found == description
    x_ND = embed_images(network, IMAGES)
    np.testing.assert_array_equal(embed_images(loaded, IMAGES), x_ND)
    mirrored = np.ascontiguousarray(IMAGES[..., ::-1])
    np.testing.assert_array_equal(embed_images(loaded, IMAGES, flip=True), embed_images(network, mirrored))


@pytest.mark.parametrize("name", ["conv4", "mobilefacenet"])
def test_onnx_runtime_gives_the_same_embeddings(name: str, tmp_path: Path) -> None:
    if not can_write_onnx():
        pytest.skip("onnx and onnxscript are not installed (lossearch[onnx])")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runtime = pytest.importorskip("onnxruntime")
    network, description = _trained(name)
    write_onnx(network, description, tmp_path / ONNX)
    assert [path.name for path in tmp_path.iterdir()] == [ONNX]
    session = runtime.InferenceSession(str(tmp_path / ONNX), providers=["CPUExecutionProvider"])
    (x_ND,) = session.run(["embeddings"], {"images": IMAGES.astype(np.float32) / 127.5 - 1})
    np.testing.assert_allclose(x_ND, embed_images(network, IMAGES), rtol=1e-3, atol=1e-4)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("trainers.exported_network.find_spec", lambda _: None)
    with pytest.raises(ExportError, match=r"pip install 'lossearch\[onnx\]'"):
        write_onnx(*_trained("conv4"), tmp_path / ONNX)
    assert not list(tmp_path.iterdir())


def test_folders_without_a_whole_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"there is no {DESCRIPTION} in .*; give the folder of a finished training"):
        load_network(tmp_path)
    network, description = _trained("conv4")
    save_network(network, description, tmp_path)
    weights = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(weights[:-9])
    with pytest.raises(ExportError, match=f"{WEIGHTS} is damaged"):
        load_network(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(weights)
    text = (tmp_path / DESCRIPTION).read_text()
    (tmp_path / DESCRIPTION).write_text(text.replace('"width": 4', '"width": 8'))
    with pytest.raises(ExportError, match=f"{WEIGHTS} does not fit {DESCRIPTION}"):
        load_network(tmp_path)
    (tmp_path / DESCRIPTION).write_text(text[:-9])
    with pytest.raises(ExportError, match=f"{DESCRIPTION} is damaged"):
        load_network(tmp_path)
