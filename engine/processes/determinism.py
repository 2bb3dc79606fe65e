"""Random numbers as a pure function of the seed and the place of their use, and deterministic computation."""

import enum
import os
import random

import numpy as np
import torch


class RngPurpose(enum.IntEnum):
    """Purpose of a stream of random numbers; streams of different purposes are independent."""

    SAMPLE = 0  # augmentation of one image
    ORDER = 1  # order of the images in one epoch
    STEP = 2  # dropout in one training step
    SHAPES = 3  # the generated data set
    BOOTSTRAP = 4  # resampled images behind a confidence interval
    MIXING = 5  # mixup and CutMix of one batch
    GATES = 6  # training images on which gates are measured


def rng(seed: int, purpose: RngPurpose, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Return the random generator of one epoch and index.

    Philox is counter-based: seed and purpose are its key, epoch and index its counter. The streams of different
    arguments never overlap, neighboring seeds are independent, and there is no state to save or restore.
    """
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, index, epoch]))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one training step, so that dropout can be resumed without saved state."""
    torch.manual_seed(int(rng(seed, RngPurpose.STEP, epoch=rank, index=step).integers(2**63)))


def set_determinism(seed: int, deterministic: bool) -> None:
    """Seed the global generators and select deterministic algorithms or the fastest kernels.

    Call it before CUDA is first used: cuBLAS reads its setting then.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(deterministic)
    # Uninitialized memory is never read here, so filling it would only cost time.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (unknown to mypy)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
