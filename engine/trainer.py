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

from engine import device, progress, schedule
from engine.augment import Preprocessing, normalise
from engine.config import RecipeConfig, TrainConfig
from engine.distributed import Ranks, accumulating
from engine.errors import UserError
from engine.interruption import Interrupted, StopRequest
from engine.loader import TrainLoader
from engine.reproducibility import seed_step
from engine.run import Run
from engine.tracking import Tracker
from engine.validation import Validation


@dataclass
class Clock:
    """Wall-clock seconds of the steps that this process made in the current epoch."""

    steps: int = 0
    total: float = 0.0
    waiting: float = 0.0  # for the next batch of images


@dataclass
class Position:
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
        self, model: nn.Module, loader: TrainLoader, preprocessing: Preprocessing, config: TrainConfig, ranks: Ranks
    ) -> None:
        self.loader, self.preprocessing, self.ranks = loader, preprocessing, ranks
        self.recipe: RecipeConfig = config.recipe
        self.seed = config.seed
        self.device = loader.device
        self.precision = device.PRECISIONS[config.runtime.precision]
        self.memory_format = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
        self.model = device.place(model, self.device, config.runtime.channels_last)
        self.parallel = ranks.parallel(self.model, config.runtime.deterministic)
        if config.runtime.compile:
            torch.compiler.reset()  # it compiles a class a few times only, those of a multirun's earlier runs included
        self.forward = torch.compile(self.parallel) if config.runtime.compile else self.parallel
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        fused = self.device.type == "cuda" and not self.scaler.is_enabled()
        self.optimizer = schedule.sgd(model, config.recipe, fused)
        self.position = Position(self._no_totals())
        self.clock = Clock()
        self._unchecked: list[_Step] = []

    @property
    def steps_done(self) -> int:
        return self.position.epoch * self.loader.steps_per_epoch + self.position.step

    @property
    def images_seen(self) -> int:
        return self.steps_done * self.recipe.batch_size

    def state_dict(self) -> dict[str, Any]:
        """All that decides how training goes on: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": vars(self.position),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])
        self.position.totals = self.position.totals.to(self.device)

    def steps(self) -> Iterator[float]:
        """Train to the end of the epoch under way; yields the learning rate of each step made."""
        self.model.train()
        self.clock = Clock()
        started = time.perf_counter()
        for images, labels, indices in self.loader.epoch(self.position.epoch, first=self.position.step):
            arrived = time.perf_counter()
            lr = schedule.learning_rate(self.recipe, self.steps_done, self.loader.steps_per_epoch)
            schedule.set_learning_rate(self.optimizer, lr)
            seed_step(self.seed, self.steps_done, self.ranks.rank)
            try:
                self._step(images, labels, indices)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"The device has too little memory for {len(images) // self.recipe.accumulate} images at a time "
                    f"(recipe.batch_size={self.recipe.batch_size}, recipe.accumulate={self.recipe.accumulate}); "
                    "set recipe.accumulate higher: the batch stays the same, worked through in more parts."
                ) from error
            self.position.step += 1
            yield lr
            now = time.perf_counter()
            self.clock.steps += 1
            self.clock.waiting += arrived - started
            self.clock.total += now - started
            started = now

    def end_epoch(self) -> None:
        self.position.epoch += 1
        self.position.step = 0
        self.position.totals = self._no_totals()

    def metrics(self) -> dict[str, float]:
        """Mean loss, and top-1 and top-5 accuracy in %, over the images of the epoch under way.

        Raises:
            UserError: if a loss since the last call is not finite; it names the step and its images.
        """
        self._require_finite_losses()
        loss, top1, top5 = (self.position.totals / (self.position.step * self.recipe.batch_size)).tolist()
        return {"loss": loss, "top1": 100 * top1, "top5": 100 * top5}

    def speed(self) -> dict[str, float]:
        """Images per second of all processes, and this one's share of time spent waiting for them, in this epoch."""
        seconds = max(self.clock.total, 1e-9)
        images = self.clock.steps * self.recipe.batch_size
        return {"images_per_second": images / seconds, "data_wait": self.clock.waiting / seconds}

    def require_finite(self) -> None:
        """Refuse, on all processes, a state from which training cannot go on.

        Raises:
            UserError: if a loss since the last look, a weight or a running statistic is not finite; it names the step.
        """
        self._require_finite_losses()
        state = [value.isfinite().all() for value in self.model.state_dict().values()]
        (is_lost,) = self.ranks.highest(not torch.stack(state).all())  # running statistics are each process's own
        if is_lost:
            raise UserError(
                f"A weight or running statistic is not finite after step {self.steps_done - 1}. The last checkpoint is "
                "from before. Delete the run and start anew with a lower recipe.lr."
            )

    def _step(self, images: Tensor, labels: Tensor, indices: Tensor) -> None:
        parts = self.recipe.accumulate
        sums = self._no_totals()
        for number, (part, truth) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True), start=1):
            inputs = normalise(part, self.preprocessing, self.memory_format)
            with accumulating(self.parallel, is_last=number == parts):
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    logits = self.forward(inputs).float()
                loss = F.cross_entropy(logits, truth, label_smoothing=self.recipe.label_smoothing)
                self.scaler.scale(loss / parts).backward()
            sums += _sums(loss.detach(), logits.detach(), truth)
        own_loss = sums[0].clone()
        sums = self.ranks.sum(sums)
        self._unchecked.append(_Step(self.steps_done, sums[0] / self.recipe.batch_size, own_loss, indices))
        self.position.totals += sums
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _no_totals(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64, device=self.device)

    def _require_finite_losses(self) -> None:
        """Look at the losses of several steps at once: each look makes the host wait for the device."""
        for step in self._unchecked:
            if not math.isfinite(step.loss.item()):
                lr = schedule.learning_rate(self.recipe, step.number, self.loader.steps_per_epoch)
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


class Keeper:
    """Saves the trainer's state into the run: when asked to, and when a checkpoint is due."""

    def __init__(self, trainer: Trainer, tracker: Tracker, run: Run, config: TrainConfig) -> None:
        self.trainer, self.tracker, self.run, self.config = trainer, tracker, run, config
        self.saved_at = time.monotonic()

    def save(self) -> None:
        # First what the curves have: a start from this state drops only what was written after it.
        self.tracker.flush()
        self.run.save_state(self.trainer.state_dict(), self.config)
        self.trainer.ranks.wait()  # a process that ends may take the others with it
        self.saved_at = time.monotonic()

    def agree(self, stop: StopRequest) -> tuple[bool, signal.Signals | None]:
        """Whether a checkpoint is due and which signal asked for a stop, the same on all processes."""
        ranks = self.trainer.ranks
        due, number = ranks.highest(ranks.is_first and self._due, stop.signal or 0)
        return bool(due), signal.Signals(number) if number else None

    @property
    def _due(self) -> bool:
        steps, minutes = self.config.run.checkpoint_every_steps, self.config.run.checkpoint_every_minutes
        by_steps = steps is not None and self.trainer.position.step % steps == 0
        return by_steps or (minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes)


def fit(
    trainer: Trainer, validate: Callable[[], Validation], tracker: Tracker, run: Run, config: TrainConfig
) -> Validation:
    """Train from the trainer's position to the end of its recipe, keeping checkpoints and curves in the run.

    Returns:
        The validation after the last epoch.

    Raises:
        Interrupted: if a signal asked for a stop; the state is saved.
        UserError: if a loss is not finite.
    """
    keeper = Keeper(trainer, tracker, run, config)
    with StopRequest() as stop:
        try:
            validation = _fit(trainer, validate, keeper, stop)
        except RuntimeError as error:
            if stop.signal is None:
                raise
            # The signal also ended the workers, which torch reports in the middle of anything: nothing can be saved.
            raise Interrupted(f"Stopped by {stop.signal.name}; the last checkpoint counts.") from error
    tracker.close()
    return validation or validate()


def _fit(trainer: Trainer, validate: Callable[[], Validation], keeper: Keeper, stop: StopRequest) -> Validation | None:
    position = trainer.position
    validation = None
    if not position.history:
        _end_row(trainer, keeper, {}, _require_finite(validate(), "before the first step"))
        keeper.save()
    while position.epoch < keeper.config.recipe.epochs:
        _train_epoch(trainer, keeper, stop)
        train_metrics = trainer.metrics()
        validation = _require_finite(validate(), f"after epoch {position.epoch + 1}")
        best = max((row["val_top1"] for row in position.history[1:]), default=-1.0)
        trainer.end_epoch()
        _end_row(trainer, keeper, train_metrics, validation)
        if validation.predictions.top1 > best:
            keeper.run.save_best({"model": trainer.model.state_dict(), "epoch": position.epoch})
        keeper.save()
    return validation


def _train_epoch(trainer: Trainer, keeper: Keeper, stop: StopRequest) -> None:
    """The rest of the epoch under way, with the curves and checkpoints that fall into it and at its end."""
    position, config = trainer.position, keeper.config
    title = f"epoch {position.epoch + 1}/{config.recipe.epochs}"
    total = trainer.loader.steps_per_epoch
    with progress.bar(trainer.steps(), total, position.step, title, keeper.run.writes) as steps:
        for _ in steps:
            is_last = position.step == total
            if position.step % config.run.log_every_steps == 0 and not is_last:
                metrics = _log_step(trainer, keeper.tracker)
                steps.set_postfix_str(
                    f"loss {metrics['loss']:.3f}, top-1 {metrics['top1']:.1f}%, "
                    f"{trainer.speed()['images_per_second']:.0f} images/s"
                )
            is_due, stopped_by = keeper.agree(stop)
            if is_last or is_due or stopped_by:
                trainer.require_finite()
                keeper.save()
            if stopped_by:
                raise Interrupted(
                    f"Stopped by {stopped_by.name} after {position.epoch} epochs and {position.step} steps."
                )
    if position.step % config.run.log_every_steps == 0:
        _log_step(trainer, keeper.tracker)
    if trainer.clock.steps:
        keeper.tracker.scalars("speed", trainer.speed(), trainer.images_seen)


def _log_step(trainer: Trainer, tracker: Tracker) -> dict[str, float]:
    """The epoch's mean loss so far and the last step's learning rate to TensorBoard; returns the metrics."""
    metrics = trainer.metrics()
    lr = schedule.learning_rate(trainer.recipe, trainer.steps_done - 1, trainer.loader.steps_per_epoch)
    tracker.scalars("step", {"loss": metrics["loss"], "lr": lr}, trainer.images_seen)
    return metrics


def first_unwritten(trainer: Trainer) -> int:
    """From how many images on the curves are still to be written, at the trainer's position.

    What is written at the end of an epoch comes after the checkpoint of its last step, at the same count of images.
    """
    if not trainer.position.history:
        return 0
    is_epoch_unended = trainer.position.step == trainer.loader.steps_per_epoch
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


def _end_row(trainer: Trainer, keeper: Keeper, train: dict[str, float], validation: Validation) -> None:
    """Note one epoch's metrics in the history, on the console and in TensorBoard; no `train` before the first."""
    tracker, predictions = keeper.tracker, validation.predictions
    val = {"loss": predictions.mean_loss, "top1": predictions.top1, "top5": predictions.top5}
    epoch, seen = trainer.position.epoch, trainer.images_seen
    row = {f"train_{key}": value for key, value in train.items()} | {f"val_{k}": v for k, v in val.items()}
    trainer.position.history.append({"epoch": epoch, **row})
    tracker.scalars("val", val, seen)
    if train:
        lr = schedule.learning_rate(trainer.recipe, trainer.steps_done - 1, trainer.loader.steps_per_epoch)
        tracker.scalars("train", {**train, "lr": lr}, seen)
    tracker.scalars("progress", {"epoch": epoch}, seen)
    tracker.scalars("gates", validation.gates, seen)
    if validation.picture is not None:
        tracker.picture("where it looks", validation.picture, seen)
        keeper.run.save_picture(validation.picture, epoch)
    tracker.flush()
    parts = [f"epoch {epoch}/{trainer.recipe.epochs}"]
    if train:
        parts.append(f"train loss {train['loss']:.3f}, top-1 {train['top1']:.2f}%")
    parts.append(f"val loss {val['loss']:.3f}, top-1 {val['top1']:.2f}%, top-5 {val['top5']:.2f}%")
    if train:
        speed = trainer.speed()
        parts.append(f"{speed['images_per_second']:.0f} images/s, {speed['data_wait']:.0%} of it waiting for data")
    progress.log.info("; ".join(parts))
