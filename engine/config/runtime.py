"""The keys of `runtime` and `run`: the computation, and the run directory."""

from dataclasses import dataclass

from engine.config.checks import at_least, between, filled, one_of


@dataclass
class RuntimeConfig:
    """Settings of the computation: device, precision, workers and determinism."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32, or autocast to bf16 | fp16
    workers: int | None = None  # worker processes per data loader; 0: none; null: one per processor, at most 8
    cache_images: bool = False  # each training process keeps its decoded images in memory; for small data sets
    deterministic: bool = True  # bit-identical reruns; false is faster on CUDA
    channels_last: bool = True  # memory format of the weights, and of the images in training
    compile: bool = False  # torch.compile
    fused_cbam: bool = False  # train CBAM with Triton kernels, on CUDA; no effect on other attention
    sync_batchnorm: bool = False  # compute batch statistics over all processes; false: over each process's images
    eval_batch_size: int = 256  # images per batch and process

    def check(self) -> None:
        one_of("runtime.device", self.device, ("auto", "cpu", "cuda"))
        one_of("runtime.precision", self.precision, ("fp32", "bf16", "fp16"))
        if self.workers is not None:
            between("runtime.workers", self.workers, 0, 1024)
        between("runtime.eval_batch_size", self.eval_batch_size, 1, 65536)


@dataclass
class RunConfig:
    """Run directory, checkpoints and logging."""

    root: str = "runs"  # folder of all runs
    dir: str | None = None  # null: ROOT/DATA/MODEL/seedSEED
    checkpoint_every_steps: int | None = None  # in addition to the end of each epoch; null: disabled
    checkpoint_every_minutes: float | None = 15.0  # the same, by wall-clock time; null: disabled
    log_every_steps: int = 50  # TensorBoard interval of loss and learning rate
    pictures: int = 4  # validation images to visualize after each epoch; 0: none; classification needs matplotlib

    def check(self) -> None:
        filled("run.root", self.root)
        if self.dir is not None:
            filled("run.dir", self.dir)
        if self.checkpoint_every_steps is not None:
            at_least("run.checkpoint_every_steps", self.checkpoint_every_steps, 1)
        if self.checkpoint_every_minutes is not None:
            at_least("run.checkpoint_every_minutes", self.checkpoint_every_minutes, 0.0)
        at_least("run.log_every_steps", self.log_every_steps, 1)
        between("run.pictures", self.pictures, 0, 64)


@dataclass
class RunsConfig:
    """Location of finished runs."""

    root: str = "runs"  # folder of all runs
