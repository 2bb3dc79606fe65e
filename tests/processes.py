"""The entry points in processes of their own, forked from a server that has imported torch: seconds saved each time."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.server", "tests.processes"])


class Process:
    """`python SCRIPT ARGUMENTS` under way: its standard output and error go to files in `folder`."""

    def __init__(
        self,
        script: str,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Start it.

        Args:
            script: relative to the repository, or absolute.
            arguments: of the command line.
            folder: the working directory.
            environment: added to this process's.
            prepare: called in the new process first; a function of a module.
        """
        self.arguments = [script, *arguments]
        name = time.monotonic_ns()
        self.output, self.errors = folder / f"{name}.out", folder / f"{name}.err"
        self.output.touch()  # readable at once: the server may take seconds to fork
        self.errors.touch()
        given = (self.arguments, folder, dict(environment), self.output, self.errors, prepare)
        self.process = _SERVER.Process(target=_main, args=given)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout: float = 300) -> int | None:
        """The exit code, negative for a signal; None if it still runs after so many seconds."""
        self.process.join(timeout)
        return self.process.exitcode

    def result(self) -> subprocess.CompletedProcess[str]:
        """What came of it."""
        code = self.wait()
        assert code is not None, f"{self.arguments} did not end"
        result = subprocess.CompletedProcess(self.arguments, code, self.output.read_text(), self.errors.read_text())
        self.output.unlink()
        self.errors.unlink()
        return result


def start_ranks(
    count: int, script: str, arguments: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None
) -> list[Process]:
    """The processes that `torchrun --nproc-per-node=COUNT SCRIPT ARGUMENTS` would start."""
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common["MASTER_PORT"] = str(free_port())
    return [
        Process(script, arguments, folder, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, prepare)
        for rank in range(count)
    ]


def kill_all() -> None:
    """End what a failed test has left behind: the interpreter would wait for it."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _main(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: Path,
    errors: Path,
    prepare: Callable[[], None] | None,
) -> None:
    import torch

    os.chdir(folder)
    os.environ.update(environment)
    for stream, path in ((1, output), (2, errors)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    script = str(REPOSITORY / arguments[0])
    sys.argv = [script, *arguments[1:]]
    sys.path[0] = str(Path(script).parent)
    sys.stdout.reconfigure(line_buffering=True)
    runpy.run_path(script, run_name="__main__")
