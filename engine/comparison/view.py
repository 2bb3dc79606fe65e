"""The presentation of each task in tables: the compared metric, columns and notes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.comparison.columns import CONTRAST_DETAILS, DETAILS, SPEED, Column, main_columns, mean, number, published
from engine.config.data import DataConfig
from engine.data.transforms import Preprocessing

# (torchvision's entry for the weights, the data set, the preprocessing of the images) to the published metric
Published = Callable[[Any, DataConfig, Preprocessing], float | None]


@dataclass(frozen=True)
class View:
    """The presentation of a task.

    Attributes:
        values: function of a task's metrics that returns the table's metrics; None for missing values.
        keys: the table's metrics; networks are compared by the first.
        label: label of the first, with its unit.
        better: "lower" or "higher".
        columns: columns of the main table.
        details: columns of the table of details.
        evaluation: how each image is evaluated.
        notes: notes on the metrics.
        paper_note: the note for tables with the paper's numbers.
        published: function that returns the published value of the first metric; None if none is comparable.
    """

    values: Callable[[Mapping[str, float]], dict[str, Any]]
    keys: tuple[str, ...]
    label: str
    better: str
    columns: tuple[Column, ...]
    details: tuple[Column, ...]
    evaluation: str
    notes: tuple[str, ...]
    paper_note: str
    published: Published

    @property
    def metric(self) -> str:
        """The name of the compared metric within a sentence, without its unit."""
        return self.label.partition(" (")[0].replace("Top", "top")


def _values(keys: tuple[str, ...]) -> Callable[[Mapping[str, float]], dict[str, Any]]:
    return lambda metrics: {key: metrics.get(key) for key in keys}


def _errors(metrics: Mapping[str, float]) -> dict[str, Any]:
    return {"top1_error": 100 - metrics["top1"], "top5_error": 100 - metrics["top5"]}


def _means(**titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, lambda row, key=key: mean(row, key)) for key, title in titles.items())  # type: ignore[misc]


def _paper(form: str, **titles: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"Paper: {title}", lambda row, key=key: number(row.get(f"paper_{key}"), form))  # type: ignore[misc]
        for key, title in titles.items()
    )


def _published_error(entry: Any, data: DataConfig, preprocessing: Preprocessing) -> float | None:
    if not data.is_imagenet_1k or preprocessing != Preprocessing.published(entry.transforms()):
        return None
    return 100 - float(entry.meta["_metrics"]["ImageNet-1K"]["acc@1"])


def _published_ap(entry: Any, data: DataConfig, preprocessing: Preprocessing) -> float | None:  # noqa: ARG001
    # An entry of a backbone has no AP.
    ap = entry.meta["_metrics"].get("COCO-val2017", {}).get("box_map")
    return None if ap is None or data.name != "coco" else float(ap)


def _no_published(entry: Any, data: DataConfig, preprocessing: Preprocessing) -> float | None:  # noqa: ARG001
    return None


_DETECTOR_COST = (
    "GFLOPs of a detector are for one square black image; in the second stage they depend on its proposals."
)

_CLASSIFICATION = View(
    values=_errors,
    keys=("top1_error", "top5_error"),
    label="Top-1 error (%)",
    better="lower",
    columns=main_columns("Top-1 error (%)", "top1_error"),
    details=(
        *DETAILS,
        *_means(top1_error_start="Top-1 error at start (%)", top5_error="Top-5 error (%)"),
        *CONTRAST_DETAILS,
        *SPEED,
        *_paper(".2f", top1_error="top-1 error (%)", top5_error="top-5 error (%)"),
        Column("Start weights: published top-1 error (%) (measured - published)", published),
    ),
    evaluation="once, with one crop",
    notes=(
        "An image is won if the network with attention classifies it correctly and its baseline does not, and lost in "
        "the opposite case. McNemar's exact test of these images is for one seed.",
    ),
    paper_note=(
        "The paper's values are from Tables 4 and 5 of arXiv 1807.06521v2. Its authors trained ResNets from scratch "
        "for 90 epochs; compare these values only with rows of that recipe."
    ),
    published=_published_error,
)

_COCO_KEYS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")

_DETECTION = View(
    values=_values(_COCO_KEYS),
    keys=_COCO_KEYS,
    label="AP (%)",
    better="higher",
    columns=main_columns("AP (%)", "ap"),
    details=(
        *DETAILS,
        *_means(
            ap50="AP50 (%)",
            ap75="AP75 (%)",
            ap_small="AP small (%)",
            ap_medium="AP medium (%)",
            ap_large="AP large (%)",
        ),
        *CONTRAST_DETAILS,
        *SPEED,
        Column("Start weights: published AP (%) (measured - published)", published),
        *_paper(".1f", ap="AP (%)", ap50="AP50 (%)", ap75="AP75 (%)"),
    ),
    evaluation="once, alone and uncropped",
    notes=(
        "AP, AP50 and AP75 are COCO's: means over classes, 101 recall levels and, for AP, IoU thresholds from 0.5 to "
        "0.95.",
        _DETECTOR_COST,
    ),
    paper_note=(
        "The paper's values are from Table 6 of arXiv 1807.06521v2: Faster R-CNN without a feature pyramid, trained "
        "for 490,000 iterations on train2014 and most of val2014."
    ),
    published=_published_ap,
)

_VOC_KEYS = ("ap_11_points", "ap_area", "ap", "ap50", "ap75")

_VOC = View(
    values=_values(_VOC_KEYS),
    keys=_VOC_KEYS,
    label="VOC 2007 mAP (%)",
    better="higher",
    columns=main_columns("mAP, 11 points (%)", "ap_11_points"),
    details=(
        *DETAILS,
        *_means(ap_area="mAP, area (%)", ap="AP (%)", ap50="AP50 (%)", ap75="AP75 (%)"),
        *CONTRAST_DETAILS,
        *SPEED,
        *_paper(".1f", ap_11_points="mAP (%)"),
    ),
    evaluation=_DETECTION.evaluation,
    notes=(
        "mAP is the VOC devkit's at IoU 0.5: the mean over 11 recall levels as in VOC 2007, and the area under the "
        "curve as in VOC 2010 and later. AP, AP50 and AP75 are COCO's; difficult objects are treated as crowds.",
        _DETECTOR_COST,
    ),
    paper_note="The paper's values are from Table 7 of arXiv 1807.06521v2, where its authors reproduced the detectors.",
    published=_no_published,
)

VIEWS = {"classification": _CLASSIFICATION, "detection": _DETECTION, "voc_detection": _VOC}
