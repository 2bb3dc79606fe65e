"""Training: steps, epochs, and the state from which a run goes on as if it had never stopped."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.config import RecipeConfig, TrainConfig
from engine.data.loader import TrainLoader
from engine.data.transforms import Preprocessing, normalize
from engine.determinism import seed_step
from engine.device import PRECISIONS, to_device
from engine.distributed import ProcessGroup, accumulating
from engine.errors import UserError
from engine.logging import log, progress_bar
from engine.run_dir import RunDirectory
from engine.signals import GracefulStop, Interrupted
from engine.training import optim
from engine.training.tensorboard import TensorBoardLogger
from engine.training.validator import Validation


@dataclass
class StepTimer:
    """Wall-clock seconds of the steps that this process made in the current epoch."""

    steps: int = 0
    total: float = 0.0
    waiting: float = 0.0  # for the next batch of images


@dataclass
class TrainState:
    """Where training stands.

    Attributes:
        epoch: whole epochs done.
        step: steps done in the epoch under way.
        totals: float64 [3] on the device: sums over that epoch's images, of all processes, of loss, top-1 hits and
            top-5 hits.
        history: the metrics of each whole epoch.
    """

    totals: Tensor
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """A step whose loss nobody has looked at yet.

    Attributes:
        number: counted from 0 over the whole training.
        loss: mean over the images of all processes, so that all of them find the same.
        own_loss: sum over this process's images.
        indices: of this process's images.
    """

    number: int
    loss: Tensor
    own_loss: Tensor
    indices: Tensor


class Trainer:
    """A model, its optimizer and its position in a recipe."""

    def __init__(
        self,
        model: nn.Module,
        loader: TrainLoader,
        preprocessing: Preprocessing,
        config: TrainConfig,
        group: ProcessGroup,
    ) -> None:
        self.loader, self.preprocessing, self.group = loader, preprocessing, group
        self.recipe: RecipeConfig = config.recipe
        self.seed = config.seed
        self.device = loader.device
        self.precision = PRECISIONS[config.runtime.precision]
        self.memory_format = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
        self.model = to_device(model, self.device, config.runtime.channels_last)
        self.parallel = group.wrap_ddp(self.model, config.runtime.deterministic)
        if config.runtime.compile:
            torch.compiler.reset()  # it compiles a class a few times only, those of a multirun's earlier runs included
        self.forward = torch.compile(self.parallel) if config.runtime.compile else self.parallel
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        fused = self.device.type == "cuda" and not self.scaler.is_enabled()
        self.optimizer = optim.build_optimizer(model, config.recipe, fused)
        self.state = TrainState(self._zero_totals())
        self.timer = StepTimer()
        self._unchecked: list[_Step] = []

    @property
    def steps_done(self) -> int:
        return self.state.epoch * self.loader.steps_per_epoch + self.state.step

    @property
    def images_seen(self) -> int:
        return self.steps_done * self.recipe.batch_size

    def state_dict(self) -> dict[str, Any]:
        """All that decides how training goes on: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": vars(self.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.state = TrainState(**state["position"])
        self.state.totals = self.state.totals.to(self.device)

    def steps(self) -> Iterator[float]:
        """Train to the end of the epoch under way; yields the learning rate of each step made."""
        self.model.train()
        self.timer = StepTimer()
        started = time.perf_counter()
        for images, labels, indices in self.loader.epoch(self.state.epoch, first=self.state.step):
            arrived = time.perf_counter()
            lr = optim.learning_rate(self.recipe, self.steps_done, self.loader.steps_per_epoch)
            optim.set_learning_rate(self.optimizer, lr)
            seed_step(self.seed, self.steps_done, self.group.rank)
            try:
                self._step(images, labels, indices)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"The device has too little memory for {len(images) // self.recipe.accumulation_steps} images at a time "
                    f"(recipe.batch_size={self.recipe.batch_size}, recipe.accumulate={self.recipe.accumulation_steps}); "
                    "set recipe.accumulate higher: the batch stays the same, worked through in more parts."
                ) from error
            self.state.step += 1
            yield lr
            now = time.perf_counter()
            self.timer.steps += 1
            self.timer.waiting += arrived - started
            self.timer.total += now - started
            started = now

    def end_epoch(self) -> None:
        self.state.epoch += 1
        self.state.step = 0
        self.state.totals = self._zero_totals()

    def metrics(self) -> dict[str, float]:
        """Mean loss, and top-1 and top-5 accuracy in %, over the images of the epoch under way.

        Raises:
            UserError: if a loss since the last call is not finite; it names the step and its images.
        """
        self._require_finite_losses()
        loss, top1, top5 = (self.state.totals / (self.state.step * self.recipe.batch_size)).tolist()
        return {"loss": loss, "top1": 100 * top1, "top5": 100 * top5}

    def speed(self) -> dict[str, float]:
        """Images per second of all processes, and this one's share of time spent waiting for them, in this epoch."""
        seconds = max(self.timer.total, 1e-9)
        images = self.timer.steps * self.recipe.batch_size
        return {"images_per_second": images / seconds, "data_wait": self.timer.waiting / seconds}

    def require_finite(self) -> None:
        """Refuse, on all processes, a state from which training cannot go on.

        Raises:
            UserError: if a loss since the last look, a weight or a running statistic is not finite; it names the step.
        """
        self._require_finite_losses()
        state = [value.isfinite().all() for value in self.model.state_dict().values()]
        (is_lost,) = self.group.all_reduce_max(
            not torch.stack(state).all()
        )  # running statistics are each process's own
        if is_lost:
            raise UserError(
                f"A weight or running statistic is not finite after step {self.steps_done - 1}. The last checkpoint is "
                "from before. Delete the run and start anew with a lower recipe.lr."
            )

    def _step(self, images: Tensor, labels: Tensor, indices: Tensor) -> None:
        parts = self.recipe.accumulation_steps
        sums = self._zero_totals()
        for number, (part, truth) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True), start=1):
            inputs = normalize(part, self.preprocessing, self.memory_format)
            with accumulating(self.parallel, is_last=number == parts):
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    logits = self.forward(inputs).float()
                loss = F.cross_entropy(logits, truth, label_smoothing=self.recipe.label_smoothing)
                self.scaler.scale(loss / parts).backward()
            sums += _sums(loss.detach(), logits.detach(), truth)
        own_loss = sums[0].clone()
        sums = self.group.all_reduce_sum(sums)
        self._unchecked.append(_Step(self.steps_done, sums[0] / self.recipe.batch_size, own_loss, indices))
        self.state.totals += sums
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _zero_totals(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64, device=self.device)

    def _require_finite_losses(self) -> None:
        """Look at the losses of several steps at once: each look makes the host wait for the device."""
        for step in self._unchecked:
            if not math.isfinite(step.loss.item()):
                lr = optim.learning_rate(self.recipe, step.number, self.loader.steps_per_epoch)
                own = ", ".join(map(self.loader.path, step.indices.tolist()[:4]))
                images = "of another process" if math.isfinite(step.own_loss.item()) else f"{own}, ..."
                raise UserError(
                    f"The loss is {step.loss.item()} at step {step.number} (learning rate {lr:.3g}, training images "
                    f"{images}). The last checkpoint is from before. "
                    "Look at these images, or delete the run and start anew with a lower recipe.lr."
                )
        self._unchecked.clear()


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """float64 [3]: sums over the images of loss, top-1 hits and top-5 hits."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([loss * len(labels), hits[:, 0].sum(), hits.sum()]).double()


class CheckpointManager:
    """Saves the trainer's state into the run: when asked to, and when a checkpoint is due."""

    def __init__(
        self, trainer: Trainer, tensorboard: TensorBoardLogger, run: RunDirectory, config: TrainConfig
    ) -> None:
        self.trainer, self.tensorboard, self.run, self.config = trainer, tensorboard, run, config
        self.saved_at = time.monotonic()

    def save(self) -> None:
        # First what the curves have: a start from this state drops only what was written after it.
        self.tensorboard.flush()
        self.run.save_state(self.trainer.state_dict(), self.config)
        self.trainer.group.barrier()  # a process that ends may take the others with it
        self.saved_at = time.monotonic()

    def sync_stop(self, stop: GracefulStop) -> tuple[bool, signal.Signals | None]:
        """Whether a checkpoint is due and which signal asked for a stop, the same on all processes."""
        group = self.trainer.group
        due, number = group.all_reduce_max(group.is_main_process and self._due, stop.signal or 0)
        return bool(due), signal.Signals(number) if number else None

    @property
    def _due(self) -> bool:
        steps, minutes = self.config.run.checkpoint_every_steps, self.config.run.checkpoint_every_minutes
        by_steps = steps is not None and self.trainer.state.step % steps == 0
        return by_steps or (minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes)


def fit(
    trainer: Trainer,
    validate: Callable[[], Validation],
    tensorboard: TensorBoardLogger,
    run: RunDirectory,
    config: TrainConfig,
) -> Validation:
    """Train from the trainer's position to the end of its recipe, keeping checkpoints and curves in the run.

    Returns:
        The validation after the last epoch.

    Raises:
        Interrupted: if a signal asked for a stop; the state is saved.
        UserError: if a loss is not finite.
    """
    checkpoints = CheckpointManager(trainer, tensorboard, run, config)
    with GracefulStop() as stop:
        try:
            validation = _fit(trainer, validate, checkpoints, stop)
        except RuntimeError as error:
            if stop.signal is None:
                raise
            # The signal also ended the workers, which torch reports in the middle of anything: nothing can be saved.
            raise Interrupted(f"Stopped by {stop.signal.name}; the last checkpoint counts.") from error
    tensorboard.close()
    return validation or validate()


def _fit(
    trainer: Trainer, validate: Callable[[], Validation], checkpoints: CheckpointManager, stop: GracefulStop
) -> Validation | None:
    state = trainer.state
    validation = None
    if not state.history:
        _end_row(trainer, checkpoints, {}, _require_finite(validate(), "before the first step"))
        checkpoints.save()
    while state.epoch < checkpoints.config.recipe.epochs:
        _train_epoch(trainer, checkpoints, stop)
        train_metrics = trainer.metrics()
        validation = _require_finite(validate(), f"after epoch {state.epoch + 1}")
        best = max((row["val_top1"] for row in state.history[1:]), default=-1.0)
        trainer.end_epoch()
        _end_row(trainer, checkpoints, train_metrics, validation)
        if validation.predictions.top1 > best:
            checkpoints.run.save_best({"model": trainer.model.state_dict(), "epoch": state.epoch})
        checkpoints.save()
    return validation


def _train_epoch(trainer: Trainer, checkpoints: CheckpointManager, stop: GracefulStop) -> None:
    """The rest of the epoch under way, with the curves and checkpoints that fall into it and at its end."""
    state, config = trainer.state, checkpoints.config
    title = f"epoch {state.epoch + 1}/{config.recipe.epochs}"
    total = trainer.loader.steps_per_epoch
    with progress_bar(trainer.steps(), total, state.step, title, checkpoints.run.writes) as steps:
        for _ in steps:
            is_last = state.step == total
            if state.step % config.run.log_every_steps == 0 and not is_last:
                metrics = _log_step(trainer, checkpoints.tensorboard)
                steps.set_postfix_str(
                    f"loss {metrics['loss']:.3f}, top-1 {metrics['top1']:.1f}%, "
                    f"{trainer.speed()['images_per_second']:.0f} images/s"
                )
            is_due, stopped_by = checkpoints.sync_stop(stop)
            if is_last or is_due or stopped_by:
                trainer.require_finite()
                checkpoints.save()
            if stopped_by:
                raise Interrupted(f"Stopped by {stopped_by.name} after {state.epoch} epochs and {state.step} steps.")
    if state.step % config.run.log_every_steps == 0:
        _log_step(trainer, checkpoints.tensorboard)
    if trainer.timer.steps:
        checkpoints.tensorboard.scalars("speed", trainer.speed(), trainer.images_seen)


def _log_step(trainer: Trainer, tensorboard: TensorBoardLogger) -> dict[str, float]:
    """The epoch's mean loss so far and the last step's learning rate to TensorBoard; returns the metrics."""
    metrics = trainer.metrics()
    lr = optim.learning_rate(trainer.recipe, trainer.steps_done - 1, trainer.loader.steps_per_epoch)
    tensorboard.scalars("step", {"loss": metrics["loss"], "lr": lr}, trainer.images_seen)
    return metrics


def first_unlogged(trainer: Trainer) -> int:
    """From how many images on the curves are still to be written, at the trainer's state.

    What is written at the end of an epoch comes after the checkpoint of its last step, at the same count of images.
    """
    if not trainer.state.history:
        return 0
    is_epoch_unended = trainer.state.step == trainer.loader.steps_per_epoch
    return trainer.images_seen + (0 if is_epoch_unended else 1)


def _require_finite(validation: Validation, when: str) -> Validation:
    """A network whose outputs are not numbers still gets a class for each image: it must not pass for a result."""
    loss = validation.predictions.mean_loss
    if not math.isfinite(loss):
        raise UserError(
            f"The validation loss is {loss} {when}. Look at the start weights, or lower recipe.lr, "
            "and delete the run to start anew."
        )
    return validation


def _end_row(trainer: Trainer, checkpoints: CheckpointManager, train: dict[str, float], validation: Validation) -> None:
    """Note one epoch's metrics in the history, on the console and in TensorBoard; no `train` before the first."""
    tensorboard, predictions = checkpoints.tensorboard, validation.predictions
    val = {"loss": predictions.mean_loss, "top1": predictions.top1, "top5": predictions.top5}
    epoch, seen = trainer.state.epoch, trainer.images_seen
    row = {f"train_{key}": value for key, value in train.items()} | {f"val_{k}": v for k, v in val.items()}
    trainer.state.history.append({"epoch": epoch, **row})
    tensorboard.scalars("val", val, seen)
    if train:
        lr = optim.learning_rate(trainer.recipe, trainer.steps_done - 1, trainer.loader.steps_per_epoch)
        tensorboard.scalars("train", {**train, "lr": lr}, seen)
    tensorboard.scalars("progress", {"epoch": epoch}, seen)
    tensorboard.scalars("gates", validation.gates, seen)
    if validation.picture is not None:
        tensorboard.picture("where it looks", validation.picture, seen)
        checkpoints.run.save_picture(validation.picture, epoch)
    tensorboard.flush()
    parts = [f"epoch {epoch}/{trainer.recipe.epochs}"]
    if train:
        parts.append(f"train loss {train['loss']:.3f}, top-1 {train['top1']:.2f}%")
    parts.append(f"val loss {val['loss']:.3f}, top-1 {val['top1']:.2f}%, top-5 {val['top5']:.2f}%")
    if train:
        speed = trainer.speed()
        parts.append(f"{speed['images_per_second']:.0f} images/s, {speed['data_wait']:.0%} of it waiting for data")
    log.info("; ".join(parts))
