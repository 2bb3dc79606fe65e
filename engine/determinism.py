"""Randomness as a pure function of the seed and the place where it is used; deterministic computation."""

import enum
import os
import random

import numpy as np
import torch


class RngPurpose(enum.IntEnum):
    """What a stream of random numbers is for; streams of different purposes are independent."""

    SAMPLE = 0  # augmentation of one image
    ORDER = 1  # order of the images in one epoch
    STEP = 2  # dropout in one training step
    SHAPES = 3  # the generated data set
    BOOTSTRAP = 4  # resampled images behind a confidence interval
    MIXING = 5  # mixup and CutMix of one batch


def rng(seed: int, purpose: RngPurpose, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """A stream of random numbers for one place of the experiment.

    Philox is counter based: the seed and purpose are its key, the place its counter. Two places never share a
    number, neighbouring seeds share nothing, and no state has to be kept or restored.
    """
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, index, epoch]))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one training step, so that dropout needs no state to be resumed from."""
    torch.manual_seed(int(rng(seed, RngPurpose.STEP, epoch=rank, index=step).integers(2**63)))


def set_determinism(seed: int, deterministic: bool) -> None:
    """Seed the global generators and choose between the same bits again and the fastest kernels.

    Call it before CUDA is first used: cuBLAS reads its setting then.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(deterministic)
    # Nothing here reads memory that it has not written, so filling it first would only cost time.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (unknown to mypy)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
