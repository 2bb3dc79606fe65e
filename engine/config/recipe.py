"""The keys of `recipe`: optimization and augmentation."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from engine.config.checks import above, at_least, between, one_of
from engine.errors import UserError

AUGMENTATIONS = ("none", "trivialaugment", "randaugment", "colorjitter")
# Keys without effect on detectors.
CLASSIFICATION_KEYS = (
    "layer_decay",
    "label_smoothing",
    "class_weights",
    "augment",
    "erase",
    "mixup",
    "cutmix",
    "train_size_ratio",
    "resize_ratio",
)
TRAINED = ("all", "attention", "attention_and_head", "head")


@dataclass
class RecipeConfig:
    """The training recipe of a network."""

    name: str = ""  # of the preset, shown in tables; no effect on training
    epochs: int = MISSING
    batch_size: int = MISSING  # images per optimizer step, over all devices and accumulation steps
    accumulation_steps: int = 1  # micro-batches per process, to save memory; norms see one micro-batch at a time
    # Optimization.
    train: str = "all"  # all | attention | attention_and_head | head; the rest is frozen, with its running statistics
    optimizer: str = "sgd"  # sgd | adamw
    lr: float = MISSING  # peak learning rate, for the whole batch
    attention_lr_factor: float = 1.0  # multiplies the learning rate of attention's parameters
    last_norms_lr_factor: float = 1.0  # the same, for the norms that attention follows, or would follow
    head_lr_factor: float = 1.0  # the same, for the head
    layer_decay: float = 1.0  # multiplies the learning rate once per stage from the layer's to the last
    momentum: float = 0.9  # SGD's
    nesterov: bool = False  # SGD's
    weight_decay: float = MISSING
    decay_norms_and_biases: bool = False  # apply weight decay to norms and biases
    decay_attention: bool = True  # the same, to attention; at the identity start its last layers are zero
    clip_grad_norm: float | None = None  # largest total gradient norm; null: no clipping
    warmup_epochs: float = 0.0  # linear; the rate of the first step is above 0
    # After warm-up: cosine to 0 | step: times step_factor every step_epochs | milestones: the same at those epochs.
    schedule: str = "cosine"
    step_epochs: int = 30
    step_factor: float = 0.1
    milestones: list[int] = field(default_factory=list)  # epochs after which the rate is multiplied by step_factor
    label_smoothing: float = 0.0
    # Of the training loss: none | balanced: images / (classes x images of the class), so that their mean is 1.
    class_weights: str = "none"
    ema_decay: float | None = None  # of the weights' exponential moving average, which is evaluated; null: no average
    ema_every_steps: int = 32  # steps between updates of the average
    # Augmentation.
    augment: str = "none"  # in addition to crop and flip: none | trivialaugment | randaugment | colorjitter
    erase: float = 0.0  # probability that a rectangle of an image is erased
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), from which an image's weight in the mixture is drawn; 0: off
    cutmix: float = 0.0  # the same, for CutMix's rectangles; 0: off; with both, each is equally likely
    repeated_augmentation: int = 1  # differently augmented copies of each image in a batch
    train_size_ratio: float = 1.0  # side of the training crops divided by data.image_size: 0.7857 for 176 px of 224
    resize_ratio: float = 256 / 224  # evaluation's resize divided by crop, unless data.resize or the weights define it
    box_augment: str = "flip"  # with boxes: flip | multi_scale | ssd | ssdlite, see engine.data.box_transforms

    def check(self) -> None:
        at_least("recipe.epochs", self.epochs, 1)
        at_least("recipe.batch_size", self.batch_size, 1)
        at_least("recipe.accumulation_steps", self.accumulation_steps, 1)
        self.check_parts(1)
        self._check_optimization()
        self._check_data()

    def _check_optimization(self) -> None:
        one_of("recipe.train", self.train, TRAINED)
        one_of("recipe.optimizer", self.optimizer, ("sgd", "adamw"))
        at_least("recipe.lr", self.lr, 0.0)
        for key in ("attention_lr_factor", "last_norms_lr_factor", "head_lr_factor"):
            at_least(f"recipe.{key}", getattr(self, key), 0.0)
        between("recipe.layer_decay", self.layer_decay, 0.0, 1.0)
        between("recipe.momentum", self.momentum, 0.0, 1.0)
        if self.nesterov and self.momentum == 0:
            raise UserError("recipe.nesterov=true needs a recipe.momentum above 0.")
        at_least("recipe.weight_decay", self.weight_decay, 0.0)
        if self.clip_grad_norm is not None:
            above("recipe.clip_grad_norm", self.clip_grad_norm, 0.0)
        between("recipe.warmup_epochs", self.warmup_epochs, 0.0, float(self.epochs))
        one_of("recipe.schedule", self.schedule, ("cosine", "step", "milestones"))
        at_least("recipe.step_epochs", self.step_epochs, 1)
        for epoch in self.milestones:
            at_least("recipe.milestones", epoch, 1)
        between("recipe.step_factor", self.step_factor, 0.0, 1.0)
        between("recipe.label_smoothing", self.label_smoothing, 0.0, 1.0)
        one_of("recipe.class_weights", self.class_weights, ("none", "balanced"))
        if self.ema_decay is not None:
            between("recipe.ema_decay", self.ema_decay, 0.0, 1.0)
        at_least("recipe.ema_every_steps", self.ema_every_steps, 1)

    def _check_data(self) -> None:
        one_of("recipe.augment", self.augment, AUGMENTATIONS)
        between("recipe.erase", self.erase, 0.0, 1.0)
        at_least("recipe.mixup", self.mixup, 0.0)
        at_least("recipe.cutmix", self.cutmix, 0.0)
        at_least("recipe.repeated_augmentation", self.repeated_augmentation, 1)
        if self.batch_size % self.repeated_augmentation:
            raise UserError(
                f"recipe.batch_size={self.batch_size} is not divisible by "
                f"recipe.repeated_augmentation={self.repeated_augmentation}."
            )
        between("recipe.train_size_ratio", self.train_size_ratio, 0.1, 2.0)
        between("recipe.resize_ratio", self.resize_ratio, 1.0, 2.0)
        one_of("recipe.box_augment", self.box_augment, ("flip", "multi_scale", "ssd", "ssdlite"))

    @property
    def mixes(self) -> bool:
        """True if images and labels are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def check_parts(self, processes: int) -> None:
        """Require that the batch divides among the processes, and each process's batch into its micro-batches."""
        parts = processes * self.accumulation_steps
        divisor = f"recipe.accumulation_steps={self.accumulation_steps}" + (
            f" times {processes} processes" if processes > 1 else ""
        )
        if self.batch_size % parts:
            raise UserError(f"recipe.batch_size={self.batch_size} is not divisible by {divisor}.")
        if self.batch_size // parts < 2:
            raise UserError(
                f"recipe.batch_size={self.batch_size} divided by {divisor} is 1; "
                "batch normalization needs at least 2 images."
            )
        if self.mixes and self.batch_size // parts % 2:
            raise UserError(
                f"recipe.batch_size={self.batch_size} divided by {divisor} is odd; mixup and cutmix need pairs."
            )
