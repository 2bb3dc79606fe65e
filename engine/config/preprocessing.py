"""The keys of `preprocessing`: the input images of weights that are not published."""

from dataclasses import dataclass

from engine.config.checks import above, between, one_of
from engine.errors import UserError

INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass
class PreprocessingConfig:
    """Normalization and evaluation crop that the start weights were trained for.

    Null is the value of the published weights or of timm's network; otherwise ImageNet's mean and standard deviation,
    bilinear interpolation and the crop of `data` and `recipe`.
    """

    mean: list[float] | None = None  # per channel, for values in [0, 1]
    std: list[float] | None = None  # the same
    interpolation: str | None = None  # bilinear | bicubic, in evaluation
    crop_ratio: float | None = None  # side of the evaluation crop divided by the resized shorter side, in (0, 1]

    def check(self) -> None:
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != 3:
                raise UserError(f"preprocessing.{key}={values} must have a value for each of the 3 channels.")
        for value in self.mean or ():
            between("preprocessing.mean", value, 0.0, 1.0)
        for value in self.std or ():
            above("preprocessing.std", value, 0.0)
        if self.interpolation is not None:
            one_of("preprocessing.interpolation", self.interpolation, INTERPOLATIONS)
        if self.crop_ratio is not None:
            between("preprocessing.crop_ratio", self.crop_ratio, 0.1, 1.0)

    @property
    def is_default(self) -> bool:
        return self == PreprocessingConfig()
