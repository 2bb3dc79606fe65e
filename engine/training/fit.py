"""The training loop: epochs, validation, checkpoints and curves."""

import math
import signal
import time

from engine.config.schemas import TrainConfig
from engine.errors import UserError
from engine.logging import log, log_to_file_only, progress_bar
from engine.processes.signals import GracefulStop, Interrupted
from engine.runs.directory import RunDirectory
from engine.training import pictures
from engine.training.descriptions import describe, shown
from engine.training.progress import ProgressReporter, RunClock
from engine.training.tensorboard import TensorBoardLogger
from engine.training.trainer import Trainer
from engine.training.validation import Validation, Validator


class CheckpointManager:
    """Writes the run's checkpoints, and determines when one is due."""

    def __init__(
        self,
        trainer: Trainer,
        tensorboard: TensorBoardLogger,
        run: RunDirectory,
        config: TrainConfig,
        progress: ProgressReporter,
    ) -> None:
        self.trainer, self.tensorboard, self.run, self.config = trainer, tensorboard, run, config
        self.progress = progress
        self.saved_at = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint; return on all processes once it is on disk."""
        # Flush the curves first: resuming from this state drops only values written after it.
        self.tensorboard.flush()
        self.run.save_state(self.trainer.state_dict(), self.config)
        self.progress.write()
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
    validate: Validator,
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
    val_batches = validate.loader.images / config.recipe.batch_size
    clock = RunClock(config.recipe.epochs, trainer.loader.steps_per_epoch, val_batches)
    checkpoints = CheckpointManager(trainer, tensorboard, run, config, ProgressReporter(trainer, run, clock))
    with GracefulStop() as stop:
        try:
            validation = _fit(trainer, validate, checkpoints, stop)
        except (Interrupted, UserError) as end:
            log_to_file_only(str(end))  # the command line shows it on stderr
            raise
        except RuntimeError as error:
            if stop.signal is None:
                raise
            # The signal also ended another process, so the steps after the last checkpoint are lost.
            sentence = f"Stopped by {stop.signal.name}; the last checkpoint is kept."
            log_to_file_only(sentence)
            raise Interrupted(sentence) from error
        validation = validation or validate(trainer.state.epoch, trainer.state.gates_at_start, stop)
    tensorboard.close()
    return validation


def _fit(
    trainer: Trainer, validate: Validator, checkpoints: CheckpointManager, stop: GracefulStop
) -> Validation | None:
    clock = checkpoints.progress.clock
    state, primary = trainer.state, f"val_{trainer.task.metrics[0]}"
    validation = None
    if not state.history:
        at_start = _require_finite(validate(0, None, stop), "before the first step")
        state.gates_at_start = dict(at_start.movement.means)
        _end_row(trainer, checkpoints, {}, at_start)
        checkpoints.save()
        clock.first_validation_ended()
    while state.epoch < checkpoints.config.recipe.epochs:
        _train_epoch(trainer, checkpoints, stop)
        train_metrics = trainer.metrics()
        validation = _require_finite(
            validate(state.epoch + 1, state.gates_at_start, stop), f"after epoch {state.epoch + 1}"
        )
        best = max((row[primary] for row in state.history[1:]), default=-1.0)
        trainer.end_epoch()
        _end_row(trainer, checkpoints, train_metrics, validation)
        if state.history[-1][primary] > best:
            best_state = {"model": trainer.evaluated.state_dict(), "epoch": state.epoch}
            checkpoints.run.save_best(best_state, checkpoints.config)
        checkpoints.save()
        clock.epoch_ended()
    return validation


def _train_epoch(trainer: Trainer, checkpoints: CheckpointManager, stop: GracefulStop) -> None:
    """Train to the end of the current epoch, and write the curves and checkpoints that are due."""
    state, config = trainer.state, checkpoints.config
    title = f"epoch {state.epoch + 1}/{config.recipe.epochs}"
    total = trainer.loader.steps_per_epoch
    with progress_bar(trainer.steps(), total, state.step, title, checkpoints.run.writes) as steps:
        for _ in steps:
            checkpoints.progress.step_ended()
            is_last = state.step == total
            if state.step % config.run.log_every_steps == 0 and not is_last:
                shown = _log_step(trainer, checkpoints.tensorboard), checkpoints.progress.time_left
                steps.set_postfix_str(", ".join(filter(None, shown)))
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
    """Write the last step's losses, gradient norm and learning rates to TensorBoard; return a line for the bar."""
    metrics = trainer.metrics()  # first: it checks the losses
    last = trainer.step_metrics()
    losses = {name: value for name, value in last.items() if name.startswith("loss")}
    tensorboard.metrics("step", losses, trainer.images_seen)
    if "gradient_norm" in last:
        tensorboard.scalars({"gradient_norm": last["gradient_norm"]}, trainer.images_seen)
    rate = trainer.learning_rate
    rates = {f"lr/{part}": factor * rate for part, factor in trainer.lr_factors.items()}
    tensorboard.scalars({"lr": rate, **rates}, trainer.images_seen)
    speed = trainer.speed()["images_per_second"]
    return f"loss {metrics['loss']:.3f}, {describe(trainer.task, metrics)}, {speed:.0f} images/s"


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
    log.info(_epoch_line(trainer, train, validation, checkpoints.progress.time_left))


def _log_epoch(
    trainer: Trainer, tensorboard: TensorBoardLogger, train: dict[str, float], validation: Validation
) -> None:
    seen = trainer.images_seen
    for split, metrics in (("val", validation.metrics), ("train", train)):
        tensorboard.metrics(split, {name: metrics[name] for name in shown(trainer.task, metrics)}, seen)
    tensorboard.scalars({"progress/epoch": trainer.state.epoch, **validation.movement.scalars()}, seen)
    tensorboard.histograms("gates", validation.gates, seen)
    if validation.picture is not None:
        tensorboard.picture(pictures.title(trainer.task), validation.picture, seen)
    tensorboard.flush()


def _epoch_line(trainer: Trainer, train: dict[str, float], validation: Validation, time_left: str) -> str:
    val = validation.metrics
    parts = [f"epoch {trainer.state.epoch}/{trainer.recipe.epochs}"]
    if train:
        parts.append(f"train loss {train['loss']:.3f}, {describe(trainer.task, train)}")
    loss = f"loss {val['loss']:.3f}, " if "loss" in val else ""
    parts.append(f"val {loss}{describe(trainer.task, val)}")
    if validation.movement.mean:
        parts.append(validation.movement.describe())
    if trainer.timer.steps:  # none, if the run was stopped between the epoch's last step and its validation
        speed = trainer.speed()
        parts.append(
            f"{speed['images_per_second']:.0f} images/s, waiting for data {speed['data_wait']:.0%} of the time"
        )
    if time_left and trainer.state.epoch < trainer.recipe.epochs:
        parts.append(time_left)
    return "; ".join(parts)
