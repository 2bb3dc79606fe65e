"""The run directory: what a run is, who may write to it, and the record of what it did."""

import dataclasses
import fcntl
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torchvision.io import encode_png

from engine import checkpoint
from engine.atomic_io import DRAFT, atomic_write
from engine.config import RENAMED_KEYS, TrainConfig, renamed
from engine.errors import UserError

_RESULTS = {
    *("model", "attention", "seed", "epochs", "classes", "top1_start", "top1", "top5"),
    *("weights_sha256", "predictions_sha256"),
}

log = logging.getLogger("run")

# Where it runs and what it writes on the way leave the result as it is, and so may change between two starts.
_NOT_IDENTITY = (
    "run.",
    "data.root",
    "runtime.device",
    "runtime.workers",
    "runtime.cache_images",
)


class RunDirectory:
    """One run directory. Reading it changes nothing; `start` makes it ours.

    Of several processes of one run, one alone writes: with `writes=False` all that would write does nothing.
    """

    def __init__(self, directory: Path, writes: bool = True) -> None:
        self.directory, self.writes = directory, writes
        self.config_file = directory / "config.yaml"
        self.record_file = directory / "record.json"
        self.log_file = directory / "log.txt"
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
        """Whether there is a state to go on from."""
        return self.last.is_file() or self.previous.is_file()

    def require_same_config(self, config: TrainConfig) -> None:
        """Refuse a directory that holds another run.

        Raises:
            UserError: naming the keys whose values differ.
        """
        if not self.config_file.is_file():
            if self.directory.exists() and not self._is_ours():
                raise UserError(f"{self.directory} is there and is no run; set run.dir to another folder.")
            return
        there, here = result_config(self.config()), result_config(config)
        differing = [
            f"{key} ({there.get(key)} there, {here.get(key)} here)"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
        if differing:
            raise UserError(
                f"{self.directory} holds a run that differs in {', '.join(differing)}; "
                "set run.dir to another folder, or delete that one."
            )

    def start(self, config: TrainConfig) -> None:
        """Make the directory, take its lock for the life of this process, and write the configuration.

        Raises:
            UserError: if it cannot be written, or another process has the lock.
        """
        if not self.writes:
            return
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            reason = f"The run directory {self.directory} cannot be written ({error.strerror})"
            raise UserError(f"{reason}; set run.dir or run.root to a folder that can.") from error
        self.require_same_config(config)  # another process may have come between the first look and the lock
        for draft in self.directory.rglob(f"*{DRAFT}"):  # of a start that was killed while writing
            draft.unlink()
        if not self.config_file.is_file():
            text = OmegaConf.to_yaml(OmegaConf.structured(config))
            atomic_write(self.config_file, lambda file: file.write(text.encode()))

    def save_state(self, state: dict[str, Any], config: TrainConfig) -> None:
        """Keep the state to go on from, and the one before it in case this one is damaged."""
        if self.writes:
            checkpoint.save({**state, "identity": result_config(config)}, self.last, self.previous)

    def save_best(self, state: dict[str, Any]) -> None:
        if self.writes:
            checkpoint.save(state, self.best)

    def load_state(self, config: TrainConfig) -> dict[str, Any] | None:
        """The newest state that can be read, None where there is none yet.

        Raises:
            UserError: if there are checkpoints but none can be read, or it belongs to another configuration.
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
            if not matches_config(state, config):
                raise UserError(f"{path} is not a checkpoint of the run in {self.config_file}; delete it.")
            if problems:
                log.warning(f"{' '.join(problems)} Going on from {path}.")
            return state
        if problems:
            raise UserError(f"{' '.join(problems)} Delete {self.directory} to start anew.")
        return None

    def config(self) -> TrainConfig:
        try:
            stored = _with_current_keys(OmegaConf.load(self.config_file))
            loaded = OmegaConf.merge(OmegaConf.structured(TrainConfig), stored)
            parsed = OmegaConf.to_object(loaded)
        except Exception as error:  # YAML and OmegaConf have many, all of them saying that the file is not ours
            raise UserError(f"{self.config_file} is damaged; restore it, or delete {self.directory}.") from error
        assert isinstance(parsed, TrainConfig)
        return parsed

    def record(self) -> dict[str, Any]:
        try:
            record = json.loads(self.record_file.read_text())
            complete = record["status"] == "running" or (record["status"] == "finished" and record.keys() >= _RESULTS)
            complete &= all(isinstance(origin, dict) for origin in record.get("earlier_origins", []))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.record_file} is damaged; restore it, or delete {self.directory}.") from error
        if not complete:
            raise UserError(f"{self.record_file} lacks results; restore it, or delete {self.directory}.")
        return dict(record)

    def save_picture(self, pixels: np.ndarray, epoch: int) -> None:
        """uint8 [height, width, 3]."""
        if self.writes:
            self.pictures.mkdir(exist_ok=True)
            png = encode_png(torch.from_numpy(pixels).permute(2, 0, 1)).numpy().tobytes()
            atomic_write(self.pictures / f"epoch{epoch:03d}.png", lambda file: file.write(png))

    def write_record(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        if self.writes:
            atomic_write(self.record_file, lambda file: file.write(text.encode()))

    def _is_ours(self) -> bool:
        """Whether a directory without a configuration is empty, or where a start was killed at once."""
        return self.directory.is_dir() and all(
            entry.name in ("lock", "checkpoint") or entry.name.endswith(DRAFT) for entry in self.directory.iterdir()
        )

    def _lock(self) -> None:
        # The kernel drops a POSIX lock with the process, however that ends, so that none is ever stale; the
        # processes that read images, which may outlive it by seconds, do not inherit it as they would a flock.
        self._lock_file = (self.directory / "lock").open("a+")
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self._lock_file.seek(0)
            holder = self._lock_file.read().strip() or "another process"
            raise UserError(f"{self.directory} is being written by {holder}; wait for it, or stop it.") from error
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock_file.flush()


def result_config(config: TrainConfig) -> dict[str, Any]:
    """The keys that decide the result of a run, with dots: {"recipe.lr": 0.01, ...}."""
    flat: dict[str, Any] = {}
    for section, values in dataclasses.asdict(config).items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return {key: value for key, value in flat.items() if not key.startswith(_NOT_IDENTITY)}


def matches_config(state: dict[str, Any], config: TrainConfig) -> bool:
    """Return whether a checkpoint is of this configuration; a key that it lacks had its default when it was written."""
    # Earlier checkpoints do not have this key either, whatever its value was.
    default = result_config(TrainConfig()) | {"runtime.eval_batch_size": config.runtime.eval_batch_size}
    return default | renamed(state.get("identity", {})) == result_config(config)


def _with_current_keys(stored: Any) -> Any:
    """Rename the keys of a configuration that an earlier version wrote."""
    for old, new in RENAMED_KEYS.items():
        section, key = old.split(".")
        if key in stored.get(section, {}):
            stored[section][new.split(".")[1]] = stored[section].pop(key)
    return stored
