"""Progress of a run: the time left, and lines about it in the log."""

import resource
import time
from collections import deque
from collections.abc import Callable

import torch

from engine.logging import SECONDS_BETWEEN_LINES, duration, log_progress
from engine.runs.directory import RunDirectory
from engine.training.descriptions import describe
from engine.training.trainer import Trainer

LINES = 20  # in the log for a whole run, at least
SECONDS_TO_FIRST_LINE = 30.0  # with the time left
_SHORTEST_WINDOW = 20  # steps
# Cost of an image in evaluation divided by its cost in training, until a validation has been measured. A training step
# has a forward and a backward pass, and the backward pass costs about twice as much as the forward pass.
_EVALUATION_COST = 1 / 3


class RunClock:
    """Durations of the steps and of the ends of epochs, and the time left that follows from them.

    The end of an epoch is everything between its last step and the next epoch's first one: validation, checkpoints,
    pictures. Only durations of this start of the run are known. The mean over the latest tenth of the run's steps
    follows changes of the speed, which are common on shared machines.
    """

    def __init__(
        self, epochs: int, steps_per_epoch: int, val_batches: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            val_batches: validation images divided by the batch size in training.
            now: clock in seconds.
        """
        self.epochs, self.steps_per_epoch, self.val_batches, self.now = epochs, steps_per_epoch, val_batches, now
        self._steps: deque[float] = deque(maxlen=max(_SHORTEST_WINDOW, epochs * steps_per_epoch // 10))
        self._has_started = False  # with the first step, whose compilation and allocations do not recur
        self._first_validation: float | None = None
        self._ends: list[float] = []
        self._mark = now()

    def step_ended(self) -> None:
        passed = self._lap()
        if self._has_started:
            self._steps.append(passed)
        self._has_started = True

    def first_validation_ended(self) -> None:
        self._first_validation = self._lap()

    def epoch_ended(self) -> None:
        self._ends.append(self._lap())

    @property
    def epoch_seconds(self) -> float | None:
        """Duration of one epoch with its validation; None until two steps have been measured."""
        if not self._steps:
            return None
        return self.steps_per_epoch * self._step_seconds + self._end_seconds

    def seconds_left(self, epoch: int, step: int) -> float | None:
        """Return the seconds until the run ends; None until two steps have been measured.

        Args:
            epoch: completed epochs.
            step: completed steps of the current epoch.
        """
        epoch_seconds = self.epoch_seconds
        return None if epoch_seconds is None else (self.epochs - epoch) * epoch_seconds - step * self._step_seconds

    @property
    def _step_seconds(self) -> float:
        return sum(self._steps) / len(self._steps)

    @property
    def _end_seconds(self) -> float:
        if self._ends:
            return sum(self._ends) / len(self._ends)
        if self._first_validation is not None:
            return self._first_validation
        return _EVALUATION_COST * self.val_batches * self._step_seconds

    def _lap(self) -> float:
        before, self._mark = self._mark, self.now()
        return self._mark - before


class ProgressReporter:
    """Reports the position, speed and time left of a run: in lines of its log, and in its progress file.

    A line is due at least every 5 minutes or 5% of the run's steps, and every 30 seconds until one has had the time
    left.
    """

    def __init__(self, trainer: Trainer, run: RunDirectory, clock: RunClock) -> None:
        self.trainer, self.run, self.clock = trainer, run, clock
        self._reported_at, self._reported_steps = clock.now(), trainer.steps_done
        self._between_lines = SECONDS_TO_FIRST_LINE

    def step_ended(self) -> None:
        """Measure a step, and log a line if one is due."""
        self.clock.step_ended()
        steps = self.trainer.steps_done - self._reported_steps
        whole_run = self.clock.epochs * self.clock.steps_per_epoch
        late = self.clock.now() - self._reported_at >= self._between_lines
        if self.run.writes and (late or steps * LINES >= whole_run):
            self._reported_at, self._reported_steps = self.clock.now(), self.trainer.steps_done
            log_progress(self._line())
            self.write()
            if self.time_left:
                self._between_lines = SECONDS_BETWEEN_LINES

    def write(self) -> None:
        """Write the progress file, from which `scripts/status.py` reads the state of a run without its checkpoint."""
        state, name = self.trainer.state, self.trainer.task.metrics[0]
        values = [row[f"val_{name}"] for row in state.history]
        self.run.write_progress(
            {
                "time": time.time(),
                "end": None,
                "epoch": state.epoch,
                "step": state.step,
                "epochs": self.clock.epochs,
                "steps_per_epoch": self.clock.steps_per_epoch,
                "seconds_left": self.clock.seconds_left(state.epoch, state.step),
                "metric": name,
                "start": values[0] if values else None,
                "last": values[-1] if values else None,
                "best": max(values[1:], default=None),
            }
        )

    @property
    def time_left(self) -> str:
        """The time left of the run as text; empty while it is unknown."""
        seconds = self.clock.seconds_left(self.trainer.state.epoch, self.trainer.state.step)
        return "" if seconds is None else f"run {duration(seconds)} left"

    def _line(self) -> str:
        trainer, state = self.trainer, self.trainer.state
        metrics, speed = trainer.mean_metrics(), ""
        if trainer.timer.steps:  # none in the first step, which is still being measured
            measured = trainer.speed()
            speed = f"{measured['images_per_second']:.0f} images/s, waiting for data {measured['data_wait']:.0%}, "
        parts = [
            f"epoch {state.epoch + 1}/{self.clock.epochs}, step {state.step}/{self.clock.steps_per_epoch}: "
            f"loss {metrics['loss']:.3f}, {describe(trainer.task, metrics)}, lr {trainer.learning_rate:.3g}",
            f"{speed}memory {_memory(trainer.device)}",
        ]
        if self.time_left:
            parts.append(f"epoch takes {duration(self.clock.epoch_seconds or 0)}, {self.time_left}")
        return "; ".join(parts)


def _memory(device: torch.device) -> str:
    """Return the largest memory so far of this process, without its workers, and of its device."""
    own = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"  # Linux reports KiB
    if device.type != "cuda":
        return own
    return f"{own}, of the device {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
