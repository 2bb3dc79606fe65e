"""Checkpoints that cannot be written or read."""

import errno
import json
import os
import pickle
import resource
from pathlib import Path
from typing import IO

import pytest

from engine.errors import UserError
from engine.runs import checkpoint
from engine.runs.atomic_io import atomic_write
from tests.commands import arguments, assert_one_line
from tests.conftest import Command


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))


def test_full_disk_keeps_the_last_checkpoint(command: Command, folders: Path, tmp_path: Path) -> None:
    """A file size limit that the checkpoint exceeds simulates the full disk."""
    common = arguments(folders, "model=mobilenet_v3_small", "model.weights=null", "run.dir=run")
    full = command("train.py", *common, prepare=limit_files)
    assert_one_line(full, "last.pt cannot be written", "Free some space, then run the same command again")
    assert list((tmp_path / "run" / "checkpoint").iterdir()) == []
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "running"


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "Free some space"), (errno.EROFS, "Make it writable")], ids=["full", "fixed"]
)
def test_the_remedy_fits_the_reason(number: int, remedy: str, tmp_path: Path) -> None:
    def fail(_: IO[bytes]) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=rf"cannot be written \({os.strerror(number)}\)\. {remedy}, then run"):
        atomic_write(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"text", b"\x80", b"", pickle.dumps([1], protocol=5)])
def test_bad_checkpoint_files_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_dead_worker_is_not_a_full_disk(tmp_path: Path) -> None:
    def write(_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    with pytest.raises(RuntimeError, match="is killed by signal"):
        atomic_write(tmp_path / "last.pt", write)
    assert list(tmp_path.iterdir()) == []


def test_drafts_differ_between_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process numbers repeat from machine to machine."""

    def write(file: IO[bytes]) -> None:
        file.write(b"first")
        monkeypatch.setattr("socket.gethostname", lambda: "other")
        atomic_write(tmp_path / "list", lambda draft: draft.write(b"second"))
        monkeypatch.undo()

    atomic_write(tmp_path / "list", write)
    assert (tmp_path / "list").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1
