"""The training loop: epochs, validation, checkpoints and curves."""

import math
import signal
import time
from collections.abc import Callable

from engine.config.schemas import TrainConfig
from engine.errors import UserError
from engine.logging import log, progress_bar
from engine.processes.signals import GracefulStop, Interrupted
from engine.runs.directory import RunDirectory
from engine.training import pictures
from engine.training.descriptions import describe
from engine.training.tensorboard import TensorBoardLogger
from engine.training.trainer import Trainer
from engine.training.validation import Validation


class CheckpointManager:
    """Writes the run's checkpoints, and determines when one is due."""

    def __init__(
        self, trainer: Trainer, tensorboard: TensorBoardLogger, run: RunDirectory, config: TrainConfig
    ) -> None:
        self.trainer, self.tensorboard, self.run, self.config = trainer, tensorboard, run, config
        self.saved_at = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint; return on all processes once it is on disk."""
        # Flush the curves first: resuming from this state drops only values written after it.
        self.tensorboard.flush()
        self.run.save_state(self.trainer.state_dict(), self.config)
        self.trainer.group.barrier()  # a process that exits may end the others
        self.saved_at = time.monotonic()

    def sync_stop(self, stop: GracefulStop) -> tuple[bool, signal.Signals | None]:
        """Return whether a checkpoint is due, and the signal that requested a stop, the same on all processes."""
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
    validate: Callable[..., Validation],
    tensorboard: TensorBoardLogger,
    run: RunDirectory,
    config: TrainConfig,
) -> Validation:
    """Train from the trainer's state to the end of its recipe; write checkpoints and curves into the run.

    Returns:
        The validation after the last epoch.

    Raises:
        Interrupted: if a signal requested a stop; completed steps are saved first.
        UserError: if a loss is not finite.
    """
    checkpoints = CheckpointManager(trainer, tensorboard, run, config)
    with GracefulStop() as stop:
        try:
            validation = _fit(trainer, validate, checkpoints, stop)
        except RuntimeError as error:
            if stop.signal is None:
                raise
            # The signal also ended another process, so the steps after the last checkpoint are lost.
            raise Interrupted(f"Stopped by {stop.signal.name}; the last checkpoint is kept.") from error
        validation = validation or validate(stop, trainer.state.gates_at_start)
    tensorboard.close()
    return validation


def _fit(
    trainer: Trainer, validate: Callable[..., Validation], checkpoints: CheckpointManager, stop: GracefulStop
) -> Validation | None:
    state, primary = trainer.state, f"val_{trainer.task.metrics[0]}"
    validation = None
    if not state.history:
        at_start = _require_finite(validate(stop), "before the first step")
        state.gates_at_start = dict(at_start.movement.means)
        _end_row(trainer, checkpoints, {}, at_start)
        checkpoints.save()
    while state.epoch < checkpoints.config.recipe.epochs:
        _train_epoch(trainer, checkpoints, stop)
        train_metrics = trainer.metrics()
        validation = _require_finite(validate(stop, state.gates_at_start), f"after epoch {state.epoch + 1}")
        best = max((row[primary] for row in state.history[1:]), default=-1.0)
        trainer.end_epoch()
        _end_row(trainer, checkpoints, train_metrics, validation)
        if state.history[-1][primary] > best:
            best_state = {"model": trainer.evaluated.state_dict(), "epoch": state.epoch}
            checkpoints.run.save_best(best_state, checkpoints.config)
        checkpoints.save()
    return validation


def _train_epoch(trainer: Trainer, checkpoints: CheckpointManager, stop: GracefulStop) -> None:
    """Train to the end of the current epoch, and write the curves and checkpoints that are due."""
    state, config = trainer.state, checkpoints.config
    title = f"epoch {state.epoch + 1}/{config.recipe.epochs}"
    total = trainer.loader.steps_per_epoch
    with progress_bar(trainer.steps(), total, state.step, title, checkpoints.run.writes) as steps:
        for _ in steps:
            is_last = state.step == total
            if state.step % config.run.log_every_steps == 0 and not is_last:
                steps.set_postfix_str(_log_step(trainer, checkpoints.tensorboard))
            is_due, stopped_by = checkpoints.sync_stop(stop)
            if is_last or is_due or stopped_by:
                trainer.require_finite()
                checkpoints.save()
            if stopped_by:
                raise Interrupted(f"Stopped by {stopped_by.name} after {state.epoch} epochs and {state.step} steps.")
    # The last step is logged here, after its checkpoint. A run that resumes from that checkpoint logs it again, and
    # `first_unlogged` makes TensorBoard drop the first copy.
    _log_step(trainer, checkpoints.tensorboard)
    if trainer.timer.steps:
        speed = {f"speed/{name}": value for name, value in trainer.speed().items()}
        checkpoints.tensorboard.scalars(speed, trainer.images_seen)


def _log_step(trainer: Trainer, tensorboard: TensorBoardLogger) -> str:
    """Write the epoch's mean losses so far and the learning rate to TensorBoard; return a line for the progress bar."""
    metrics = trainer.metrics()
    losses = {name: value for name, value in metrics.items() if name.startswith("loss")}
    tensorboard.metrics("step", losses, trainer.images_seen)
    tensorboard.scalars({"lr": trainer.learning_rate}, trainer.images_seen)
    speed = trainer.speed()["images_per_second"]
    return f"loss {metrics['loss']:.3f}, {describe(metrics)}, {speed:.0f} images/s"


def first_unlogged(trainer: Trainer) -> int:
    """Return the image count from which curve values are still to be written, given the trainer's state.

    Values at the end of an epoch are written after the checkpoint of its last step, at the same image count.
    """
    if not trainer.state.history:
        return 0
    is_epoch_unended = trainer.state.step == trainer.loader.steps_per_epoch
    return trainer.images_seen + (0 if is_epoch_unended else 1)


def _require_finite(validation: Validation, when: str) -> Validation:
    """Reject a network with non-finite outputs, which would still predict a class for each image."""
    loss = validation.metrics.get("loss", 0.0)
    if not math.isfinite(loss):
        raise UserError(
            f"The validation loss is {loss} {when}. Check the start weights, or lower recipe.lr, "
            "and delete the run to start again."
        )
    return validation


def _end_row(trainer: Trainer, checkpoints: CheckpointManager, train: dict[str, float], validation: Validation) -> None:
    """Add one epoch's metrics to the history, the log and TensorBoard; `train` is empty before the first epoch."""
    val, epoch = validation.metrics, trainer.state.epoch
    row = {f"train_{key}": value for key, value in train.items()} | {f"val_{k}": v for k, v in val.items()}
    trainer.state.history.append({"epoch": epoch, **row})
    _log_epoch(trainer, checkpoints.tensorboard, train, validation)
    if validation.picture is not None:
        checkpoints.run.save_picture(validation.picture, epoch)
    log.info(_epoch_line(trainer, train, validation))


def _log_epoch(
    trainer: Trainer, tensorboard: TensorBoardLogger, train: dict[str, float], validation: Validation
) -> None:
    seen = trainer.images_seen
    tensorboard.metrics("val", validation.metrics, seen)
    tensorboard.metrics("train", train, seen)
    tensorboard.scalars({"progress/epoch": trainer.state.epoch, **validation.movement.scalars()}, seen)
    tensorboard.histograms("gates", validation.gates, seen)
    if validation.picture is not None:
        tensorboard.picture(pictures.title(trainer.task), validation.picture, seen)
    tensorboard.flush()


def _epoch_line(trainer: Trainer, train: dict[str, float], validation: Validation) -> str:
    val = validation.metrics
    parts = [f"epoch {trainer.state.epoch}/{trainer.recipe.epochs}"]
    if train:
        parts.append(f"train loss {train['loss']:.3f}, {describe(train)}")
    loss = f"loss {val['loss']:.3f}, " if "loss" in val else ""
    parts.append(f"val {loss}{describe(val)}")
    if validation.movement.mean:
        parts.append(validation.movement.describe())
    if trainer.timer.steps:  # none, if the run was stopped between the epoch's last step and its validation
        speed = trainer.speed()
        parts.append(
            f"{speed['images_per_second']:.0f} images/s, waiting for data {speed['data_wait']:.0%} of the time"
        )
    return "; ".join(parts)
