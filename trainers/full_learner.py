"""`FullLearner`: network, head and optimiser of a full training, and how they take a step.

N batch, C classes, R class weights, D embedding, K colour channels, H×W image.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from search_space import HeadSGD, LossSpec, MarginHead
from search_space.functional import cosines, nearest_center
from trainers.full_recipe import FullNumerics, FullRecipe
from trainers.networks import build_network

_OPTIMIZER = "optimizer."


class _Model(nn.Module):
    """What is trained, so that one `state_dict` names everything."""

    def __init__(self, network: nn.Module, head: MarginHead) -> None:
        super().__init__()
        self.network = network
        self.head = head


class FullLearner:
    """One network in full training. Equal arguments give equal weights.

    `image_shape` is (channels, height, width); `class_counts` the training images of each class.
    """

    def __init__(
        self,
        spec: LossSpec,
        *,
        image_shape: tuple[int, int, int],
        class_counts: Sequence[int],
        recipe: FullRecipe,
        numerics: FullNumerics,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._recipe, self._numerics, self._device = recipe, numerics, device
        self._layout = torch.channels_last if numerics.channels_last else torch.contiguous_format
        network = build_network(recipe, image_shape=image_shape, generator=generator)
        head = MarginHead(
            spec,
            len(class_counts),
            recipe.embedding_dim,
            class_counts=class_counts,
            sample_rate=recipe.sample_rate,
            generator=generator,
        )
        # torch's type stubs lack this overload of Module.to
        network = network.to(device, memory_format=self._layout)  # type: ignore[call-overload]
        self._model = _Model(network, head).to(device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=numerics.dtype == "float16")
        self._optimizers = self._make_optimizers()

    @property
    def network(self) -> nn.Module:
        """From N×K×H×W float images to N×D embeddings."""
        return self._model.network

    def use(self, spec: LossSpec) -> None:
        """Go on under another loss. What means the same in both carries over, the optimiser's state too."""
        if spec == self._model.head.loss.spec:
            return
        self._model.head.use(spec)
        held = {parameter: self._state(parameter) for parameter in self._model.parameters()}
        self._optimizers = self._make_optimizers()
        for parameter in self._model.parameters():
            self._state(parameter).update(held.get(parameter, {}))

    def step(
        self, parts: Sequence[tuple[Tensor, Tensor]], *, learning_rate: float, generator: torch.Generator
    ) -> Tensor:
        """One step down the gradient of a batch's mean loss, which is returned.

        The batch comes in equal parts of float images and labels. Everything random in it (margins, sampled classes,
        dropout) follows from `generator`; torch's own generators are afterwards as they were.
        """
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        self._model.train()
        self._model.head.loss.generator = generator
        self._model.zero_grad()
        total = torch.zeros((), device=self._device)
        with self._seeded(generator):
            for images_NKHW, label_N in parts:
                loss = self._model.head(self._embeddings(images_NKHW), label_N) / len(parts)
                self._scaler.scale(loss).backward()
                total += loss.detach()
        if self._recipe.clip_norm is not None:
            self._scaler.unscale_(self._optimizers[0])
            nn.utils.clip_grad_norm_(self._model.network.parameters(), self._recipe.clip_norm)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        return total

    @contextmanager
    def _seeded(self, generator: torch.Generator) -> Iterator[None]:
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            yield

    def _embeddings(self, images_NKHW: Tensor) -> Tensor:
        images_NKHW = images_NKHW.contiguous(memory_format=self._layout)
        dtype = self._numerics.dtype
        with torch.autocast(self._device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32"):
            embeddings_ND: Tensor = self._model.network(images_NKHW)
        return embeddings_ND.float()

    @torch.no_grad()
    def embed(self, images_NKHW: Tensor) -> Tensor:
        """Embeddings N×D, float32, of float images, in evaluation mode."""
        self._model.eval()
        return self._embeddings(images_NKHW)

    @torch.no_grad()
    def cosines(self, embeddings_ND: Tensor) -> Tensor:
        """Cosines N×C between embeddings and class weights, the nearest of each class's centers."""
        head = self._model.head
        return nearest_center(cosines(embeddings_ND, head.weight), head.loss.spec.centers)

    def loss_state(self) -> dict[str, float]:
        """The single numbers that the loss tracks or learns, such as AdaCos's scale."""
        return self._model.head.loss.tracked()

    def diagnose(self) -> str | None:
        """A sentence when the loss's own state has diverged, else None."""
        return self._model.head.loss.diagnose()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name, not copied."""
        state = {
            f"{_OPTIMIZER}{key}.{name}": value
            for name, parameter in self._model.named_parameters()
            for key, value in self._state(parameter).items()
            if isinstance(value, Tensor)
        }
        scale = {f"scaler.{key}": torch.tensor(value) for key, value in self._scaler.state_dict().items()}
        return self._model.state_dict() | state | scale

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave under the same recipe and loss. Raises `ValueError` for anything else."""
        own = {name: tensors[name] for name in self._model.state_dict() if name in tensors}
        try:
            self._model.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint does not fit this recipe and data: {error}") from None
        for name, parameter in self._model.named_parameters():
            for key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                if (value := tensors.get(f"{_OPTIMIZER}{key}.{name}")) is not None:
                    self._state(parameter)[key] = torch.empty_like(parameter).copy_(value)
            if (steps := tensors.get(f"{_OPTIMIZER}step.{name}")) is not None:
                self._state(parameter)["step"] = steps.clone()
        if scale := {name.removeprefix("scaler."): tensors[name].item() for name in tensors if "scaler." in name[:7]}:
            self._scaler.load_state_dict(scale)

    def _state(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What the optimiser of a parameter keeps of it."""
        fused = parameter is self._model.head.weight and self._numerics.fused_head_step
        state: dict[str, Any] = self._optimizers[-1 if fused else 0].state[parameter]
        return state

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        """One for all, and behind it one for the class weights where the head's backward takes their step.

        Lists of numbers, such as biases and normalisations, do not decay.
        """
        recipe, head = self._recipe, self._model.head
        own = self._numerics.fused_head_step
        parameters = [each for each in self._model.parameters() if not own or each is not head.weight]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if recipe.optimizer == "adamw":
            return [torch.optim.AdamW(groups, lr=recipe.learning_rate)]
        rate, momentum = recipe.learning_rate, recipe.momentum
        fused = [HeadSGD(head, lr=rate, momentum=momentum, weight_decay=recipe.weight_decay)] if own else []
        return [torch.optim.SGD(groups, lr=rate, momentum=momentum), *fused]
