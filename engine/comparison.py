"""Rows of a comparison: which networks enter, how each does on every image, and against which baseline."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from engine import checkpoint, complexity, device, provenance
from engine.augment import Preprocessing
from engine.config import DataConfig, EvaluateConfig
from engine.datasets import Dataset
from engine.errors import UserError
from engine.evaluator import Candidate, Predictions, evaluate
from engine.loader import EvalLoader, EvalSamples
from engine.run import Run, identity


@dataclass(frozen=True)
class Contender:
    """A network that enters the comparison.

    Attributes:
        model: with the weights to evaluate.
        preprocessing: of the images it sees.
        facts: its row so far: what is known before it is evaluated.
        record: of its run; empty for published weights.
        setting: the keys of its run that its baseline has to share; empty for published weights.
    """

    model: nn.Module
    preprocessing: Preprocessing
    facts: dict[str, Any]
    record: dict[str, Any]
    setting: dict[str, Any]

    @classmethod
    def of_run(cls, run: Run, model: nn.Module) -> "Contender":
        """A finished run's final weights.

        Raises:
            UserError: if the weights are not those of the run's record.
        """
        record = run.record()
        if checkpoint.sha256(model.state_dict()) != record["weights_sha256"]:
            raise UserError(f"The weights in {run.last} are not those that {run.record_file} tells of; repeat the run.")
        facts = {
            **{key: record[key] for key in ("model", "attention", "seed", "epochs", "parameters", "gflops")},
            "top1_error_start": 100 - record["top1_start"],
            "recorded_top1_error": 100 - record["top1"],
            "source": str(run.directory),
        }
        ours = ("model.attention", "attention.")
        setting = {key: value for key, value in identity(run.config()).items() if not key.startswith(ours)}
        return cls(model, Preprocessing.of_record(record["preprocessing"]), facts, record, setting)

    @classmethod
    def of_published(cls, name: str, model: nn.Module, entry: Any, data: DataConfig) -> "Contender":
        """Published weights as they are; `entry` is torchvision's."""
        preprocessing = Preprocessing.choose(data, entry.transforms())
        facts = {
            "model": name,
            "attention": "none",
            "seed": None,
            "epochs": 0,
            "parameters": complexity.parameters(model),
            "gflops": complexity.gflops(model, preprocessing.crop),
            "published_top1_error": 100 - entry.meta["_metrics"]["ImageNet-1K"]["acc@1"],
            "source": f"torchvision {entry.name}",
        }
        return cls(model, preprocessing, facts, {}, {})


def find_runs(config: EvaluateConfig) -> list[Run]:
    """The runs that a configuration names, or every finished one of its data set, in the order of their paths.

    Raises:
        UserError: if a named run is not finished, or there is nothing to compare.
    """
    if config.runs is not None:
        runs = [Run(Path(directory)) for directory in config.runs]
        unfinished = [str(run.directory) for run in runs if not run.finished]
        if unfinished:
            raise UserError(f"There is no finished run in {', '.join(unfinished)}; train it first, or leave it out.")
        return runs
    folder = Path(config.root) / config.data.label
    records = sorted(folder.glob("*/seed*/record.json"))
    runs = [run for run in (Run(record.parent) for record in records) if run.finished]
    if not runs and not config.published:
        raise UserError(
            f"There is no finished run in {folder.absolute()}; train one first "
            f"(python train.py data={config.data.name} ...), name runs with runs=[DIR,...], "
            "or networks with published weights with published=[resnet50,...]."
        )
    return runs


def compare(contenders: list[Contender], data: Dataset, config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate all contenders in one pass over the validation images.

    Returns:
        The table: its rows, the predictions behind them, and what they were measured on.

    Raises:
        UserError: if a run was trained on other data, or differs from its baseline in more than attention.
    """
    fingerprint = data.fingerprint()
    for contender in contenders:
        if contender.record.get("data_fingerprint", fingerprint) != fingerprint:
            raise UserError(
                f"{contender.facts['source']} was trained on other images than {config.data.root}; set data.root."
            )
    baselines = [_baseline(contender, contenders) for contender in contenders]
    where = device.choose(config.runtime.device)
    predictions = _predict(contenders, data, config)
    rows = [
        {
            **contender.facts,
            "top1_error": 100 - said.top1,
            "top5_error": 100 - said.top5,
            "difference": None if baseline is None else predictions[baseline].top1 - said.top1,
        }
        for contender, baseline, said in zip(contenders, baselines, predictions, strict=True)
    ]
    return {
        "data": {
            "name": data.name,
            "classes": len(data.classes),
            "train_images": len(data.train),
            "val_images": len(data.val),
            "fingerprint": fingerprint,
        },
        "evaluated": {"precision": config.runtime.precision, **provenance.describe(where)},
        "rows": rows,
        "records": [contender.record for contender in contenders],
        "predictions": predictions,
    }


def _predict(contenders: list[Contender], data: Dataset, config: EvaluateConfig) -> list[Predictions]:
    where = device.choose(config.runtime.device)
    ways = tuple(dict.fromkeys(contender.preprocessing for contender in contenders))
    loader = EvalLoader(EvalSamples(data.val, ways), config.runtime.eval_batch_size, config.runtime.workers, where)
    candidates = [
        Candidate(device.place(contender.model, where, config.runtime.channels_last), contender.preprocessing)
        for contender in contenders
    ]
    return evaluate(candidates, loader, device.PRECISIONS[config.runtime.precision])


def _baseline(contender: Contender, contenders: list[Contender]) -> int | None:
    """Position of the same backbone without attention, trained alike; None where there is none, or for itself."""
    if contender.facts["attention"] == "none":
        return None
    keys = ("model", "seed")
    for position, other in enumerate(contenders):
        if (
            other.record
            and other.facts["attention"] == "none"
            and all(contender.facts[key] == other.facts[key] for key in keys)
        ):
            _require_same_setting(contender, other)
            return position
    return None


def _require_same_setting(contender: Contender, baseline: Contender) -> None:
    here, there = contender.setting, baseline.setting
    differing = [f"{key} ({here[key]} against {there[key]})" for key in here if here[key] != there.get(key)]
    if differing:
        raise UserError(
            f"{contender.facts['source']} cannot be compared with {baseline.facts['source']}: they differ in "
            f"{', '.join(differing)}. Train them alike, or name the runs to compare with runs=[DIR,...]."
        )
