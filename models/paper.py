"""What the paper measured: single-crop errors on ImageNet-1K's validation set, its Tables 4 and 5."""

from typing import NamedTuple


class Errors(NamedTuple):
    """In percent."""

    top1: float
    top5: float


# Without attention, with SE, with CBAM. Footnote to Table 4: all are the authors' own reproductions.
ERRORS: dict[str, dict[str, Errors]] = {
    name: {"none": Errors(*none), "se": Errors(*se), "cbam": Errors(*cbam)}
    for name, none, se, cbam in (
        # Table 4
        ("resnet18", (29.60, 10.55), (29.41, 10.22), (29.27, 10.09)),
        ("resnet34", (26.69, 8.60), (26.13, 8.35), (25.99, 8.24)),
        ("resnet50", (24.56, 7.50), (23.14, 6.70), (22.66, 6.31)),
        ("resnet101", (23.38, 6.88), (22.35, 6.19), (21.51, 5.69)),
        ("resnet18_w15", (26.85, 8.88), (26.21, 8.47), (26.10, 8.43)),
        ("resnet18_w20", (25.63, 8.20), (24.93, 7.65), (24.84, 7.63)),
        ("resnext50_32x4d", (22.85, 6.48), (21.91, 6.04), (21.92, 5.91)),
        ("resnext101_32x4d", (21.54, 5.75), (21.17, 5.66), (21.07, 5.59)),
        # Table 5
        ("mobilenet_v1_a07", (34.86, 13.69), (32.50, 12.49), (31.51, 11.48)),
        ("mobilenet_v1", (31.39, 11.51), (29.97, 10.63), (29.01, 9.99)),
    )
}
