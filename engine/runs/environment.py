"""The code, packages and hardware that produced a result."""

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy", "hydra-core", "omegaconf")


# The keys of `collect_env`.
KEYS = ("code_revision", "code_clean", "python", "packages", "device", "cuda", "threads")


def collect_env(device: torch.device) -> dict[str, Any]:
    """Return the code, packages and hardware on which the bits of a result depend."""
    return {
        "code_revision": _git("rev-parse", "HEAD"),
        # A table that was written again, below results/, is not code.
        "code_clean": _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results") == "",
        "python": platform.python_version(),
        "packages": _packages(),
        "device": _hardware(device),
        "cuda": {"toolkit": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        if device.type == "cuda"
        else None,
        "threads": torch.get_num_threads(),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # Triton is not available on every platform
            found[name] = version(name)
    return found


def _git(*arguments: str) -> str | None:
    """Return git's output for this repository; None if it is not a checkout or git is not installed."""
    command = ["git", "-C", str(Path(__file__).resolve().parent.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
