"""`Learner`: the network, class weights, loss and optimiser of one candidate, and how they take a step.

N batch, C classes, R class weights, D embedding, K colour channels, H×W image.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from search_space import Loss, LossSpec, build, margin_loss
from search_space.functional import cosines, nearest_center
from search_space.loss import carries_over
from trainers import numerics as nm
from trainers.networks import build_network
from trainers.recipe import Numerics, Recipe
from trainers.sampling import batch_images

_LOSS = "loss."
_VELOCITY = "velocity."


class _Candidate(nn.Module):
    """What is trained: network, class weights and loss, so that one `state_dict` names everything."""

    def __init__(self, network: nn.Module, weights_RD: Tensor, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.class_weights_RD = nn.Parameter(weights_RD)
        self.loss = loss


class Learner:
    """One candidate in training. Equal arguments give equal weights.

    `image_shape` is (channels, height, width); `class_counts` the training images of each class.
    """

    def __init__(
        self,
        spec: LossSpec,
        *,
        image_shape: tuple[int, int, int],
        class_counts: Sequence[int],
        recipe: Recipe,
        numerics: Numerics,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.spec, self._recipe, self._numerics, self._device = spec, recipe, numerics, device
        self._class_counts = class_counts
        network = build_network(recipe, image_shape=image_shape, generator=generator)
        network = nm.placed(network, numerics, device)
        rows, dim = len(class_counts) * spec.centers, recipe.embedding_dim
        weights_RD = torch.randn(rows, dim, generator=generator) / dim**0.5
        self._model = _Candidate(network, weights_RD, self._build_loss(spec)).to(device)
        if numerics.execution == "cuda_graph":
            batch = batch_images(recipe, class_counts)
            nm.capture(self._model.network, (batch, *image_shape), numerics, device)
        self._optimizer = self._make_optimizer()

    def _build_loss(self, spec: LossSpec) -> Loss:
        return build(spec, num_classes=len(self._class_counts), class_counts=self._class_counts)

    def draw_margins_from(self, generator: torch.Generator) -> None:
        """Random margins come from `generator` from now on."""
        self._model.loss.generator = generator

    def use(self, spec: LossSpec) -> None:
        """Go on under another loss. What means the same in both carries over, the rest starts fresh."""
        if spec == self.spec:
            return
        held = {
            name: tensor.clone()
            for name, tensor in self.tensors().items()
            if carries_over(name.removeprefix(_VELOCITY).removeprefix(_LOSS), self.spec, spec)
        }
        self.spec = spec
        self._model.loss = self._build_loss(spec).to(self._device)
        self._optimizer = self._make_optimizer()
        self.load(held)

    def step(self, images_NKHW: Tensor, label_N: Tensor, *, learning_rate: float) -> Tensor:
        """One step down the gradient of the batch's mean loss, which is returned."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._model.train()
        embeddings_ND = nm.run(self._model.network, images_NKHW, self._numerics)
        loss = margin_loss(self._model.loss, embeddings_ND, self._model.class_weights_RD, label_N).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def embed(self, images_NKHW: Tensor) -> Tensor:
        """Embeddings N×D, float32, of float images, in evaluation mode."""
        self._model.eval()
        return nm.run(self._model.network, images_NKHW, self._numerics)

    @torch.no_grad()
    def cosines(self, embeddings_ND: Tensor) -> Tensor:
        """Cosines N×C between embeddings and class weights, the nearest of each class's centers."""
        return nearest_center(cosines(embeddings_ND, self._model.class_weights_RD), self.spec.centers)

    def loss_state(self) -> dict[str, float]:
        """The single numbers that the loss tracks or learns, such as AdaCos's scale."""
        return self._model.loss.tracked()

    def diagnose(self) -> str | None:
        """A sentence when the loss's own state has diverged, else None."""
        return self._model.loss.diagnose()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name, not copied."""
        parameters = dict(self._model.named_parameters())
        state = self._optimizer.state
        velocity = {name: state[p]["momentum_buffer"] for name, p in parameters.items() if state.get(p)}
        return self._model.state_dict() | {_VELOCITY + name: buffer for name, buffer in velocity.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy what `tensors` gave, of this learner or another.

        What the loss tracks or learns and the other did not stays as it is. Raises `ValueError` when the network or
        the class weights differ in shape.
        """
        own = self._model.state_dict()
        given = without_optimizer(tensors)
        _refuse_misfit(_shapes(own), _shapes(given))
        fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
        self._model.load_state_dict({**own, **fitting})
        for name, parameter in self._model.named_parameters():
            velocity = tensors.get(_VELOCITY + name)
            if velocity is not None and velocity.shape == parameter.shape:
                self._optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(velocity)

    def _make_optimizer(self) -> torch.optim.SGD:
        """SGD with momentum; biases and normalisation weights do not decay."""
        parameters = list(self._model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self._recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=self._recipe.learning_rate, momentum=self._recipe.momentum)


def without_optimizer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `Learner.tensors` gives, without the optimiser's state."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_VELOCITY)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The shapes of all tensors but the loss's."""
    return {name: list(tensor.shape) for name, tensor in tensors.items() if not name.startswith(_LOSS)}


def _refuse_misfit(needed: Mapping[str, list[int]], given: Mapping[str, list[int]]) -> None:
    for name in sorted(needed.keys() | given.keys()):
        if needed.get(name) != given.get(name):
            raise ValueError(
                f"the checkpoint does not fit this recipe and data: {name} must have shape {needed.get(name)}, "
                f"but has {given.get(name)}"
            )
