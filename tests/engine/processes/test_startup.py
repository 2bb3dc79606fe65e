"""Start of a program: signals and missing packages."""

import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import REPOSITORY

SCRIPTS = {file.stem for file in (REPOSITORY / "scripts").glob("*.py")}
WAIT = (
    "from engine.processes.startup import prepare_process; prepare_process(); print('ready', flush=True); import time; "
)
WAIT += "time.sleep(9)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_before_training_exits_75(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == os.EX_TEMPFAIL
    assert errors == f"Stopped by {number.name}. Run the same command again.\n"


def test_signal_is_answered_during_a_c_call() -> None:
    code = "from engine.processes.startup import prepare_process; prepare_process(); import ctypes; "
    code += "libc = ctypes.CDLL(None); mutex = ctypes.create_string_buffer(64); libc.pthread_mutex_lock(mutex); "
    code += "print('ready', flush=True); "
    code += "libc.pthread_mutex_lock(mutex)"  # waits for ever, and no signal interrupts it
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(5) == os.EX_TEMPFAIL
    finally:
        process.kill()


@pytest.mark.parametrize(
    # first_gpu.py runs without Hydra, on machines that have only torch.
    "program",
    ["train.py", "evaluate.py", *sorted(f"scripts/{name}.py" for name in SCRIPTS - {"__init__", "first_gpu"})],
)
def test_missing_packages_say_what_to_do(program: str) -> None:
    """This also shows that signals are answered before the slow imports."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-S", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {sys.executable} does not have torch, torchvision, hydra-core, omegaconf, tensorboard, tqdm."
    )
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 5


HELP, UNKNOWN = ("--help", "Keys and their defaults"), ("recipes.lr=1", "Could not override 'recipes.lr'")


@pytest.mark.parametrize(
    ("program", "argument", "answer"),
    [
        *(("train.py", *HELP), ("train.py", *UNKNOWN), ("evaluate.py", *HELP)),
        *(("scripts/export.py", *UNKNOWN), ("scripts/hash_batches.py", *HELP)),
    ],
)
def test_help_and_unknown_keys_do_not_wait_for_torch(program: str, argument: str, answer: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", program, argument], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert answer in done.stdout + done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert "torch" not in imported


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_signal_is_answered_without_stderr(stderr: str) -> None:
    process = subprocess.Popen(
        ["bash", "-c", f'exec {sys.executable} -c "$0" {stderr}', WAIT], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == os.EX_TEMPFAIL


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_a_mistake_is_code_2_though_stderr_cannot_be_written(stderr: str) -> None:
    done = subprocess.run(["bash", "-c", f"exec {sys.executable} train.py recipes.lr=1 {stderr}"], cwd=REPOSITORY)
    assert done.returncode == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_freed_memory_is_kept() -> None:
    code = "import resource; from engine.processes.startup import prepare_process; prepare_process(); "
    code += "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; bytearray(16 << 20); "
    code += "before = faults(); bytearray(16 << 20); print(faults() - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # of 4096 pages


def test_the_end_of_a_process_does_not_visit_all_of_torch() -> None:
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); "  # called after those of later
    code += "from engine.processes.startup import prepare_process; prepare_process()"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


@pytest.mark.parametrize(("policy", "spins"), [(None, "10000"), ("ACTIVE", "30000000000")])
def test_idle_threads_sleep_unless_told_to_spin(policy: str | None, spins: str) -> None:
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({} if policy is None else {"OMP_WAIT_POLICY": policy})
    code = "from engine.processes.startup import prepare_process; prepare_process(); import torch"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
