"""The run directory: its files, its lock, and the checks that its files belong together."""

import fcntl
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from engine.config.schemas import TrainConfig, train_node
from engine.errors import UserError
from engine.processes.cluster import is_earlier_start, slurm_start
from engine.processes.signals import Interrupted
from engine.runs import checkpoint, file_schema
from engine.runs.atomic_io import DRAFT, atomic_write
from engine.runs.identity import mismatches, recorded_label, result_config, with_current_keys

log = logging.getLogger("run")

# Keys of a record on the calibration of attention, which is measured once, before the first step.
CALIBRATION_FACTS = ("calibration_images", "scales_sha256")


def repair_advice(directory: Path) -> str:
    """Return the sentence on what to do about a damaged file that follows from the last checkpoint."""
    return f"Restore the file or run `python scripts/repair_run.py {directory}`, which computes it again."


class RunDirectory:
    """One run directory. Reading it changes nothing; `start` opens it for writing.

    Only one process of a run writes: with `writes=False`, the methods that write do nothing.
    """

    def __init__(self, directory: Path, writes: bool = True) -> None:
        self.directory, self.writes = directory, writes
        self._is_started = False
        self.config_file = directory / "config.yaml"
        self.record_file = directory / "record.json"
        self.log_file = directory / "log.txt"
        self.lock_file = directory / "lock"
        self.progress_file = directory / "progress.json"
        self.pictures = directory / "pictures"
        self.predictions = directory / "predictions.npz"
        self.last = directory / "checkpoint" / "last.pt"
        self.previous = directory / "checkpoint" / "previous.pt"
        self.best = directory / "checkpoint" / "best.pt"

    @property
    def finished(self) -> bool:
        return self.record_file.is_file() and self.record()["status"] == "finished"

    @property
    def has_checkpoint(self) -> bool:
        """True if there is a state to resume from."""
        return self.last.is_file() or self.previous.is_file()

    @property
    def missing_results(self) -> list[Path]:
        """The files of a finished run that are missing but can be computed again from a checkpoint."""
        return [file for file in (self.last, self.predictions) if not file.is_file()]

    @property
    def problem(self) -> str:
        """The reason why the configuration or the record of a started run cannot be read; empty if they can."""
        try:
            if self.config_file.is_file():
                self.config()
            if self.record_file.is_file():
                self.record()
        except UserError as error:
            return str(error)
        return ""

    @property
    def is_locked(self) -> bool:
        """True while a process writes the run. Checking takes no lock, so it cannot get in a starting run's way."""
        try:
            with self.lock_file.open("rb") as file:
                request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock of Linux
                return struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, request))[0] != fcntl.F_UNLCK
        except OSError:
            return False

    @property
    def holder(self) -> tuple[str, str]:
        """The process that last wrote the run (`process 12 on node7`) and its Slurm job; empty where unknown."""
        try:
            process, _, job = self.lock_file.read_text(encoding="utf-8", errors="replace").partition("\n")
        except OSError:
            return "", ""
        return process.strip(), job.strip()

    def require_same_config(self, config: TrainConfig) -> None:
        """Reject a directory that contains another run.

        Raises:
            UserError: if values differ (the error names their keys), or the directory cannot be read.
        """
        try:
            is_started = self.config_file.is_file()
        except OSError as error:  # no permission, or a name that is too long
            raise self._unusable("read", error) from error
        if not is_started:
            if self.directory.exists() and not self._is_ours():
                raise UserError(f"{self.directory} exists but is not a run directory; set run.dir to a different path.")
            return
        there, here = result_config(self.config()), result_config(config)
        differing = [
            f"{key} ({there.get(key)} there, {here.get(key)} here)"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
        if differing:
            raise UserError(
                f"{self.directory} contains a run that differs in {', '.join(differing)}; set run.dir or run.root to "
                "another folder for this one."
            )

    def start(self, config: TrainConfig) -> None:
        """Create the directory, lock it until this process ends, and write the configuration.

        Raises:
            UserError: if the directory cannot be written, or another process has the lock.
        """
        if not self.writes:
            return
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise self._unusable("written", error) from error
        self.require_same_config(config)  # another process may have started a run before the lock was taken
        self._is_started = True
        for folder in (self.directory, self.last.parent, self.pictures):
            for draft in folder.glob(f"*{DRAFT}"):  # left by a start that was killed while writing
                draft.unlink()
        if not self.config_file.is_file():
            text = OmegaConf.to_yaml(OmegaConf.structured(config))
            atomic_write(self.config_file, lambda file: file.write(text.encode()))

    def save_state(self, state: dict[str, Any], config: TrainConfig) -> None:
        """Write the state to resume from, and keep the previous one in case this one is damaged."""
        if self.writes:
            checkpoint.save(self._described(state, config), self.last, self.previous)

    def save_best(self, state: dict[str, Any], config: TrainConfig) -> None:
        """Write the weights of the best epoch so far."""
        if self.writes:
            checkpoint.save(self._described(state, config), self.best)

    def _described(self, state: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
        """Return a state with the configuration, and with what is needed from a record that may be lost.

        By the names of the classes, another run matches the head.
        """
        record = self.record() if self.record_file.is_file() else {}
        kept = {key: record[key] for key in ("class_names", *CALIBRATION_FACTS) if key in record}
        return {**state, **kept, "identity": result_config(config)}

    def load_state(self, config: TrainConfig) -> dict[str, Any] | None:
        """Return the newest readable state, or None if there is no checkpoint yet.

        Raises:
            UserError: if no existing checkpoint can be read, or the state belongs to another configuration.
        """
        problems = []
        for path in (self.last, self.previous):
            if not path.is_file():
                continue
            try:
                state = checkpoint.load(path)
            except checkpoint.UnreadableCheckpoint as error:
                problems.append(str(error))
                continue
            self._require_state(state, path, config)
            if problems:
                log.warning(f"{' '.join(problems)} Resuming from {path}.")
            return state
        if problems:
            raise UserError(f"{' '.join(problems)} Restore one of them, or set run.dir to start another run.")
        return None

    def final_state(self) -> dict[str, Any]:
        """Return the last checkpoint of a finished run.

        Raises:
            UserError: if it is missing or unreadable, or the run's files contradict each other.
        """
        if not self.last.is_file():
            raise UserError(
                f"The weights {self.last} are missing. Restore the file"
                + (
                    f" or run `python scripts/repair_run.py {self.directory}`."
                    if self.has_checkpoint
                    else ", or repeat the run with a new run.dir."
                )
            )
        config, record = self.config(), self.record()
        state = checkpoint.load(self.last)
        self._require_state(state, self.last, config)
        recorded = {key: record[key] for key in ("model", "attention", "seed", "epochs")}
        recorded["attention"] = recorded_label(record, config)
        configured = {
            "model": config.model.label,
            "attention": config.attention_label,
            "seed": config.seed,
            "epochs": config.recipe.epochs,
        }
        for key, value in configured.items():
            if recorded[key] != value:
                raise UserError(
                    f"{key} is {recorded[key]} in {self.record_file}, but {value} in {self.config_file}; restore the "
                    "file that was edited."
                )
        self._require_history(record, state["position"]["history"])
        if checkpoint.sha256(state["model"]) != record["weights_sha256"]:
            raise UserError(f"The weights in {self.last} do not match {self.record_file}; restore the file.")
        return state

    def config(self) -> TrainConfig:
        """Return the configuration that the run was started with."""
        try:
            stored = with_current_keys(OmegaConf.load(self.config_file))
            kind = OmegaConf.select(stored, "model.attention", default="none")
            parsed = OmegaConf.to_object(OmegaConf.merge(train_node(kind), stored))
        except OSError as error:
            raise UserError(f"{self.config_file} cannot be read ({error.strerror}).") from error
        except Exception as error:  # YAML and OmegaConf raise many types for a file that is not ours
            reason = " ".join(str(error).split())
            raise UserError(f"{self.config_file} is not a configuration ({reason}); restore the file.") from error
        assert isinstance(parsed, TrainConfig)
        return parsed

    def record(self) -> dict[str, Any]:
        """Return the record of a started run.

        Raises:
            UserError: if it cannot be read, or a key is missing or of another type.
        """
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{self.record_file} cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise UserError(f"{self.record_file} is not a record ({error}). {repair_advice(self.directory)}") from error
        advice = repair_advice(self.directory)
        status = file_schema.require_types(record, {"status": file_schema.TEXT}, self.record_file, advice)["status"]
        if status not in ("running", "finished"):
            raise UserError(f"status in {self.record_file} is {status!r}, not running or finished. {advice}")
        expected = file_schema.FINISHED if status == "finished" else file_schema.RUNNING
        since = {key: types for key, types in file_schema.FINISHED_SINCE.items() if key in record}
        file_schema.require_types(record, {**expected, **since}, self.record_file, advice)
        if record["classes"] != len(record["class_names"]):
            raise UserError(
                f"classes in {self.record_file} is {record['classes']}, but there are {len(record['class_names'])} "
                f"class_names. {advice}"
            )
        preprocessing = f"preprocessing in {self.record_file}"
        file_schema.require_types(record["preprocessing"], file_schema.PREPROCESSING, preprocessing, advice)
        return record

    def save_picture(self, pixels: np.ndarray, epoch: int) -> None:
        """Write a picture, uint8 [height, width, 3]."""
        if self.writes:
            from torchvision.io import encode_png  # a second, which the scripts that list runs do not need

            self.pictures.mkdir(exist_ok=True)
            png = encode_png(torch.from_numpy(pixels).permute(2, 0, 1)).numpy().tobytes()
            atomic_write(self.pictures / f"epoch{epoch:03d}.png", lambda file: file.write(png))

    def write_record(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        if self.writes:
            atomic_write(self.record_file, lambda file: file.write(text.encode()))

    def write_progress(self, progress: dict[str, Any]) -> None:
        """Write the position of a run under way and its time left; no result depends on it."""
        text = json.dumps(progress, indent=2) + "\n"
        if not self.writes:
            return
        try:
            atomic_write(self.progress_file, lambda file: file.write(text.encode()))
        except UserError as error:
            log.warning(f"scripts/status.py shows an earlier state of this run: {error}")

    def read_progress(self) -> dict[str, Any]:
        """Return what `write_progress` wrote; empty if there is nothing, as in a run of an earlier version."""
        try:
            progress = json.loads(self.progress_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return progress if isinstance(progress, dict) else {}

    @contextmanager
    def noting_its_end(self) -> Iterator[None]:
        """Add to the progress file whether the training that is the context was stopped by a signal or failed.

        A process that is killed adds nothing: the `end` that `ProgressReporter` wrote remains None.
        """
        try:
            yield
        except Interrupted as stop:
            self._note_end("stopped", stop)
            raise
        except Exception as error:
            self._note_end("failed", error)
            raise

    def _note_end(self, state: str, error: Exception) -> None:
        if self._is_started:  # otherwise, the progress is another process's
            reason = " ".join(f"{error}".split()) or type(error).__name__
            self.write_progress({**self.read_progress(), "end": state, "reason": reason[:300]})

    def _require_state(self, state: dict[str, Any], path: Path, config: TrainConfig) -> None:
        advice = "Restore the file."
        file_schema.require_types(state, file_schema.CHECKPOINT, path, advice)
        since = {key: types for key, types in file_schema.POSITION_SINCE.items() if key in state["position"]}
        expected = {**file_schema.POSITION, **since}
        file_schema.require_types(state["position"], expected, f"position in {path}", advice)
        if not all(isinstance(value, torch.Tensor) for value in state["model"].values()):
            raise UserError(f"model in {path} does not contain only tensors. {advice}")
        differing = mismatches(state, config)
        if differing:
            raise UserError(
                f"{path} is not a checkpoint of the run in {self.config_file}: they differ in {', '.join(differing)}; "
                "restore the file that was edited."
            )

    def _require_history(self, record: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Require that a record contains the history of the last checkpoint, and the values that follow from it."""
        if len(history) != record["epochs"] + 1:
            raise UserError(f"{self.last} is not from the end of the run; restore the file.")
        expected: dict[str, Any] = {"history": history}
        for key in (key for key in history[0] if key.startswith("val_")):
            best, name = max(history[1:], key=lambda row: row[key]), key.removeprefix("val_")
            expected[f"{name}_start"] = history[0][key]
            if f"best_{name}" in record:
                expected |= {f"best_{name}": best[key], "best_epoch": best["epoch"]}
        for key, value in expected.items():
            if record.get(key, value) != value:
                raise UserError(f"{key} in {self.record_file} does not match {self.last}; restore the file.")

    def _unusable(self, attempted: str, error: OSError) -> UserError:
        reason = f"The run directory {self.directory} cannot be {attempted} ({error.strerror})"
        return UserError(f"{reason}; set run.dir or run.root to a writable folder.")

    def _is_ours(self) -> bool:
        """Return whether a directory without a configuration is empty or left by a start that was killed early."""
        return self.directory.is_dir() and all(
            entry.name in ("lock", "checkpoint") or entry.name.endswith(DRAFT) for entry in self.directory.iterdir()
        )

    def _lock(self) -> None:
        # The kernel releases a POSIX lock however the process ends, so that it is not stale on a running machine. Data
        # loading workers, which may outlive the process by seconds, do not inherit it; they would inherit a flock.
        self._lock_file = self.lock_file.open("a+")
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self._lock_file.seek(0)
            holder, _, job = self._lock_file.read().partition("\n")
            if is_earlier_start(job.strip()):
                raise Interrupted(
                    f"{self.directory} is still locked by an earlier start of this job ({holder}); a file system may "
                    f"keep the lock of a node that is down. If this repeats, delete {self._lock_file.name}."
                ) from error
            raise UserError(
                f"{self.directory} is being written by {holder or 'another process'}; wait for it or stop it. If its "
                f"machine is down, delete {self._lock_file.name}."
            ) from error
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()} on {socket.gethostname()}\n{slurm_start()}\n")
        self._lock_file.flush()
