"""Training step, and the state from which a run resumes exactly."""

import math
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.config.recipe import RecipeConfig
from engine.config.schemas import TrainConfig
from engine.data.loader import Batch, TrainLoader
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.processes.determinism import seed_step
from engine.processes.device import PRECISIONS, to_device
from engine.processes.distributed import ProcessGroup, accumulating
from engine.tasks.base import Task
from engine.training import optim
from engine.training.ema import WeightAverage
from engine.training.param_groups import NetworkParts, freeze


@dataclass
class StepTimer:
    """Wall-clock seconds of this process's steps in the current epoch."""

    steps: int = 0
    total: float = 0.0
    waiting: float = 0.0  # time waiting for the next batch


@dataclass
class TrainState:
    """The position in a training run.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the current epoch.
        totals: float64 on the device; sums over the current epoch's images of all processes, for the task's training
            metrics.
        history: metrics before the first step and after each epoch.
        gates_at_start: mean of each attention gate in each channel, before the first step.
        seconds: wall-clock seconds of the completed steps, over all starts of the run, including logs and checkpoints
            between the steps. It has no effect on the training.
        waiting: the part of `seconds` in which the main process waited for batches.
        last_step: the last step's sums, as in `totals`, and the norm of its gradient if it was measured. In the state,
            because a run may be stopped between a step and the curves' values at it.
    """

    totals: Tensor
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    gates_at_start: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    waiting: float = 0.0
    last_step: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _UncheckedStep:
    """A step whose loss has not been checked yet.

    Attributes:
        number: step number, counted from 0 over the whole training.
        loss: mean over the images of all processes, equal on all of them.
        local_loss: sum over this process's images.
        indices: of this process's images.
    """

    number: int
    loss: Tensor
    local_loss: Tensor
    indices: Tensor


class Trainer:
    """A model, its optimizer and its position in a recipe."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        preprocessing: Preprocessing,
        loader: TrainLoader,
        config: TrainConfig,
        group: ProcessGroup,
        parts: NetworkParts | None = None,
    ) -> None:
        """
        Args:
            parts: parts of the model; required if the recipe treats them differently.
        """
        self.task, self.preprocessing, self.loader, self.group = task, preprocessing, loader, group
        self.recipe: RecipeConfig = config.recipe
        self.seed, self.log_every_steps = config.seed, config.run.log_every_steps
        self.device = loader.device
        self.precision = PRECISIONS[config.runtime.precision]
        self.model = to_device(model, self.device, config.runtime.channels_last)
        parts = parts or NetworkParts()
        self.frozen_norms = freeze(self.model, parts, config.recipe)
        self.trained_parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        self.lr_factors = parts.learning_rate_factors(trained, config.recipe)
        self.average = None if config.recipe.ema_decay is None else WeightAverage(self.model, config.recipe)
        self.parallel = group.wrap_ddp(self.model, config.runtime.deterministic)
        if config.runtime.compile:
            torch.compiler.reset()  # torch limits compilations per class; earlier runs of a multirun count
        self.forward = torch.compile(self.parallel) if config.runtime.compile else self.parallel
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        fused = self.device.type == "cuda" and not self.scaler.is_enabled()
        self.optimizer = optim.build_optimizer(model, config.recipe, fused, parts)
        self.state = TrainState(self._zero_totals())
        self.timer = StepTimer()
        self.step_seconds = array("f")  # of this start
        self._since: float | None = None  # start of the step in progress
        self._unchecked: list[_UncheckedStep] = []

    @property
    def evaluated(self) -> nn.Module:
        """The model to validate and keep, with the averaged weights if the recipe averages them."""
        return self.average.model if self.average else self.model

    @property
    def steps_done(self) -> int:
        """Steps since the start of the training."""
        return self.state.epoch * self.loader.steps_per_epoch + self.state.step

    @property
    def images_seen(self) -> int:
        """Training images since the start, including repetitions."""
        return self.steps_done * self.recipe.batch_size

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the training steps over all starts of the run, up to now."""
        return self.state.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return optim.learning_rate(self.recipe, self.steps_done - 1, self.loader.steps_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the complete training state as tensors and plain values."""
        state = {
            "model": self.evaluated.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": vars(self.state) | {"seconds": self.seconds},
        }
        if self.average:
            state |= {"training_model": self.model.state_dict(), "average": self.average.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.evaluated.load_state_dict(state["model"])
        if self.average:
            self.model.load_state_dict(state["training_model"])
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.state = TrainState(**state["position"])
        self.state.totals = self.state.totals.to(self.device)
        self.state.last_step = {name: value.to(self.device) for name, value in self.state.last_step.items()}

    def steps(self) -> Iterator[None]:
        """Train to the end of the current epoch; yield after each step."""
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()
        self.timer = StepTimer()
        started = self._since = time.perf_counter()
        for batch in self.loader.epoch(self.state.epoch, first=self.state.step):
            arrived = time.perf_counter()
            self.state.waiting += arrived - started
            lr = optim.learning_rate(self.recipe, self.steps_done, self.loader.steps_per_epoch)
            optim.set_learning_rate(self.optimizer, lr)
            seed_step(self.seed, self.steps_done, self.group.rank)
            try:
                self._step(batch)
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(batch) from error
            self.state.step += 1
            yield
            now = time.perf_counter()
            self.timer.steps += 1
            self.timer.waiting += arrived - started
            self.timer.total += now - started
            self.step_seconds.append(now - started)
            self.state.seconds += now - started
            started = self._since = now
        self._since = None

    def end_epoch(self) -> None:
        """Start the next epoch."""
        self.state.epoch += 1
        self.state.step = 0
        self.state.totals = self._zero_totals()

    def metrics(self) -> dict[str, float]:
        """Return the task's training metrics over the images of the current epoch so far.

        Raises:
            UserError: if a loss since the last call is not finite; the error names the step and its images.
        """
        self._require_finite_losses()
        return self.mean_metrics()

    def mean_metrics(self) -> dict[str, float]:
        """Return the same as `metrics` without the check, which all processes have to make together."""
        return self._per_image(self.state.totals, self.state.step)

    def step_metrics(self) -> dict[str, float]:
        """Return the task's training metrics of the last step alone, and `gradient_norm` if it was measured."""
        last = self.state.last_step
        norm = {"gradient_norm": last["gradient_norm"].item()} if "gradient_norm" in last else {}
        return (self._per_image(last["totals"], 1) if last else {}) | norm

    def _per_image(self, totals: Tensor, steps: int) -> dict[str, float]:
        means = (totals / (steps * self.recipe.batch_size)).tolist()
        factors = self.task.training_metrics.items()
        return {name: factor * mean for (name, factor), mean in zip(factors, means, strict=True)}

    def speed(self) -> dict[str, float]:
        """Return this epoch's images/s over all processes, and this process's fraction of time waiting for data."""
        seconds = max(self.timer.total, 1e-9)
        images = self.timer.steps * self.recipe.batch_size
        return {"images_per_second": images / seconds, "data_wait": self.timer.waiting / seconds}

    def require_finite(self) -> None:
        """Reject, on all processes, a state from which training cannot continue.

        Raises:
            UserError: if a loss since the last check, a weight or a running statistic is not finite.
        """
        self._require_finite_losses()
        state = [value.isfinite().all() for value in self.model.state_dict().values()]
        # Each process has its own running statistics.
        (is_lost,) = self.group.all_reduce_max(not torch.stack(state).all())
        if is_lost:
            raise UserError(
                f"A weight or running statistic is not finite after step {self.steps_done - 1}. The last checkpoint "
                "is older and unaffected. Delete the run and start again with a lower recipe.lr."
            )

    def _step(self, batch: Batch) -> None:
        """Run one optimizer step, with gradients accumulated over micro-batches and averaged over all processes."""
        micro_batches = self.recipe.accumulation_steps
        totals = self._zero_totals()
        for number, micro_batch in enumerate(batch.chunk(micro_batches), start=1):
            with accumulating(self.parallel, is_last=number == micro_batches):
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    loss, sums = self.task.training_step(self.forward, micro_batch, self.preprocessing)
                if self.trained_parameters:  # the baseline of attention-only training has none
                    self.scaler.scale(loss / micro_batches).backward()
            totals += sums
        local_loss = totals[0].clone()
        totals = self.group.all_reduce_sum(totals)
        mean_loss = totals[0] / self.recipe.batch_size
        self._unchecked.append(_UncheckedStep(self.steps_done, mean_loss, local_loss, batch.indices))
        self.state.totals += totals
        self.state.last_step = {"totals": totals}
        if self.trained_parameters:
            self._update_weights()

    def _update_weights(self) -> None:
        if self.recipe.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
            self.state.last_step["gradient_norm"] = norm
        elif self._is_logged:
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            self.state.last_step["gradient_norm"] = nn.utils.get_total_norm(gradients) / self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model, self.state.epoch, self.state.step)

    @property
    def _is_logged(self) -> bool:
        """True if the curves have a value at the current step."""
        number = self.state.step + 1
        return number % self.log_every_steps == 0 or number == self.loader.steps_per_epoch

    def _zero_totals(self) -> Tensor:
        return torch.zeros(len(self.task.training_metrics), dtype=torch.float64, device=self.device)

    def _require_finite_losses(self) -> None:
        """Check the losses of several steps at once, because each check makes the host wait for the device."""
        for step in self._unchecked:
            if not math.isfinite(step.loss.item()):
                lr = optim.learning_rate(self.recipe, step.number, self.loader.steps_per_epoch)
                local = ", ".join(map(self.loader.split.path, step.indices.tolist()[:4]))
                images = "of another process" if math.isfinite(step.local_loss.item()) else f"{local}, ..."
                raise UserError(
                    f"The loss is {step.loss.item()} at step {step.number} (learning rate {lr:.3g}, training images "
                    f"{images}). The last checkpoint is older and unaffected. "
                    "Check these images, or delete the run and start again with a lower recipe.lr."
                )
        self._unchecked.clear()

    def _out_of_memory(self, batch: Batch) -> UserError:
        recipe = self.recipe
        images = len(batch.indices) // recipe.accumulation_steps
        return UserError(
            f"The device has too little memory for {images} images at a time (recipe.batch_size={recipe.batch_size}, "
            f"recipe.accumulation_steps={recipe.accumulation_steps}). Increase recipe.accumulation_steps: the batch "
            "stays the same, split into more micro-batches."
        )
