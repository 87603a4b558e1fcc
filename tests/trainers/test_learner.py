import torch

from search_space import LossSpec, catalog
from trainers import Numerics, Recipe
from trainers.learner import Learner

ADACOS = catalog.adacos_dynamic()


def _learner(spec: LossSpec, seed: int = 0) -> Learner:
    return Learner(
        spec,
        image_shape=(1, 16, 16),
        class_counts=[2] * 5,
        recipe=Recipe(width=4, embedding_dim=8),
        numerics=Numerics(),
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
    )


def _step(learner: Learner) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(10, 1, 16, 16, generator=generator)
    learner.step(images, torch.arange(10) % 5, learning_rate=0.1)


def test_loss_state_carries_over_between_losses_of_one_structure_and_else_starts_fresh() -> None:
    learner = _learner(ADACOS)
    initial = learner.loss_state()["scale"]
    for _ in range(3):
        _step(learner)
    moved = learner.loss_state()["scale"]
    assert moved != initial
    learner.use(ADACOS.model_copy(update={"weight": 2.0}))
    assert learner.loss_state() == {"scale": moved}
    learner.use(catalog.softmax())
    assert learner.loss_state() == {}
    learner.use(ADACOS)
    assert learner.loss_state() == {"scale": initial}


def test_a_change_of_loss_keeps_weights_and_momentum() -> None:
    learner = _learner(catalog.softmax())
    _step(learner)
    before = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    learner.use(catalog.cosface())
    after = learner.tensors()
    assert any(name.startswith("velocity.") for name in before)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_loading_makes_two_learners_take_the_same_steps() -> None:
    one, other = _learner(ADACOS, seed=0), _learner(ADACOS, seed=1)
    _step(one)
    other.load(one.tensors())
    for learner in (one, other):
        _step(learner)
    mine, theirs = one.tensors(), other.tensors()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_biases_and_normalisation_do_not_decay() -> None:
    """With zero images every gradient of the first convolution is zero: what moves it is decay alone."""
    learner = _learner(catalog.softmax())
    before = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    learner.step(torch.zeros(10, 1, 16, 16), torch.arange(10) % 5, learning_rate=0.1)
    after = learner.tensors()
    torch.testing.assert_close(
        after["network.body.0.weight"], before["network.body.0.weight"] * (1 - 0.1 * 5e-4), rtol=1e-6, atol=0
    )
    assert torch.equal(after["network.body.1.weight"], before["network.body.1.weight"])


def test_cosines_are_those_of_the_normalised_class_weights() -> None:
    learner = _learner(catalog.softmax())
    weights_CD = learner.tensors()["class_weights_RD"]
    torch.testing.assert_close(learner.cosines(3 * weights_CD).diagonal(), torch.ones(5))
