"""A network that enters the comparison: a finished run, or published weights as they are."""

from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from engine import checkpoint
from engine.analysis import complexity
from engine.config import DataConfig, TrainConfig
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.run_dir import RunDirectory, identity
from engine.tasks.classification import Predictions


@dataclass(frozen=True)
class TableEntry:
    """A network and what is known of it before it is evaluated.

    Attributes:
        model: with the weights to evaluate.
        preprocessing: of the images it sees.
        facts: its row so far.
        record: of its run; empty for published weights.
        config: of its run, as YAML, without data.root; empty for published weights.
        setting: the keys of its run that the runs it is compared with have to share; empty for published weights.
    """

    model: nn.Module
    preprocessing: Preprocessing
    facts: dict[str, Any]
    record: dict[str, Any]
    config: str
    setting: dict[str, Any]

    @classmethod
    def of_run(cls, run: RunDirectory, model: nn.Module, start_weights: Any | None) -> "TableEntry":
        """A finished run's final weights.

        Args:
            run: finished.
            model: with the run's final weights.
            start_weights: torchvision's entry of the weights it started from, None where they are not published.

        Raises:
            UserError: if the weights or the predictions are not those of the run's record.
        """
        config, record = run.config(), run.record()
        if checkpoint.sha256(model.state_dict()) != record["weights_sha256"]:
            raise UserError(f"The weights in {run.last} are not those that {run.record_file} tells of; repeat the run.")
        Predictions.load(run.predictions, record["predictions_sha256"])
        preprocessing = Preprocessing.of_record(record["preprocessing"])
        facts = {
            **{key: record[key] for key in ("model", "attention", "seed", "epochs", "parameters", "gflops")},
            "top1_error_start": 100 - record["top1_start"],
            "recorded_top1_error": 100 - record["top1"],
            "published_top1_error": _published_top1_error(start_weights, config.data, preprocessing),
            "source": str(run.directory),
        }
        if config.model.attention != "none" and config.attention.start == "random":
            facts["published_top1_error"] = None  # changed before the first step
        setting = {key: value for key, value in identity(config).items() if not key.startswith(_FREE)}
        if config.model.attention != "cbam":
            del setting["runtime.fused_cbam"]
        setting["batch per process"] = record.get("batch_per_process", config.recipe.batch_size)
        return cls(model, preprocessing, facts, record, _anywhere(config), setting)

    @classmethod
    def of_published(cls, name: str, model: nn.Module, entry: Any, data: DataConfig) -> "TableEntry":
        """Published weights as they are; `entry` is torchvision's."""
        preprocessing = Preprocessing.choose(data, entry.transforms())
        facts = {
            "model": name,
            "attention": "none",
            "seed": None,
            "epochs": 0,
            "parameters": complexity.parameters(model),
            "gflops": complexity.gflops(model, preprocessing.crop),
            "top1_error_start": None,
            "recorded_top1_error": None,
            "published_top1_error": _published_top1_error(entry, data, preprocessing),
            "source": f"torchvision {entry.name}",
        }
        return cls(model, preprocessing, facts, record={}, config="", setting={})


# What the table compares: everything else has to be alike.
_FREE = ("model.name", "model.attention", "attention.", "seed")


def _anywhere(config: TrainConfig) -> str:
    """A run's configuration as YAML, but for the folder of the images, which is another on each machine."""
    data = replace(config.data, root="???")  # OmegaConf's sign for what has to be given
    return OmegaConf.to_yaml(OmegaConf.structured(replace(config, data=data)))


def _published_top1_error(entry: Any | None, data: DataConfig, preprocessing: Preprocessing) -> float | None:
    """What published weights measure if the pipeline is right; None where nothing is published for these images."""
    if entry is None or not data.is_imagenet_1k or preprocessing != Preprocessing.published(entry.transforms()):
        return None
    return 100 - float(entry.meta["_metrics"]["ImageNet-1K"]["acc@1"])
