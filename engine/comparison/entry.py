"""The networks of a comparison: finished runs, and published weights without training."""

from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from engine.analysis import complexity
from engine.comparison.view import VIEWS, View
from engine.config.data import DataConfig
from engine.config.model import label
from engine.config.schemas import TrainConfig
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.runs import checkpoint, file_schema
from engine.runs.directory import RunDirectory, repair_advice
from engine.runs.identity import recorded_label, result_config
from engine.tasks.base import Task


@dataclass(frozen=True)
class TableEntry:
    """A network to compare, and the facts known before it is evaluated.

    Attributes:
        model: network with the weights to evaluate.
        preprocessing: preprocessing of its images.
        row: its row of the table so far.
        record: record of its run; empty for published weights.
        config: configuration of its run as YAML, without data.root; empty for published weights.
        shared_config: keys of its run that the compared runs must share; empty for published weights.
    """

    model: nn.Module
    preprocessing: Preprocessing
    row: dict[str, Any]
    record: dict[str, Any]
    config: str
    shared_config: dict[str, Any]

    @classmethod
    def of_run(cls, run: RunDirectory, model: nn.Module, task: Task, start_weights: Any | None) -> "TableEntry":
        """Return the entry of a finished run.

        Args:
            model: network with the run's final weights.
            start_weights: torchvision's entry for the weights that the run started from; None if they are not
                published.

        Raises:
            UserError: if the weights or the predictions do not match the run's record.
        """
        config, record = run.config(), run.record()
        metrics = [f"{name}{suffix}" for name in task.metrics for suffix in ("", "_start")]
        file_schema.require_types(
            record, dict.fromkeys(metrics, file_schema.NUMBER), run.record_file, "Restore the file."
        )
        if checkpoint.sha256(model.state_dict()) != record["weights_sha256"]:
            raise UserError(f"The weights in {run.last} do not match {run.record_file}; repeat the run.")
        task.predictions.load(run.predictions, record["predictions_sha256"], repair_advice(run.directory))
        preprocessing = Preprocessing.of_record(record["preprocessing"], run.record_file)
        view = VIEWS[config.data.task]
        start = view.values({name: record[f"{name}_start"] for name in task.metrics})
        final = view.values({name: record[name] for name in task.metrics})
        primary = view.keys[0]
        row = {
            **{key: record[key] for key in ("model", "attention", "seed", "epochs", "parameters", "gflops")},
            "attention": recorded_label(record, config),
            "recipe": config.recipe.name,
            "attention_lr_factor": config.attention_lr_factor,
            **{key: record.get(key) for key in GATE_VALUES},
            "weights": record.get("weights", "last step"),
            f"{primary}_start": start[primary],
            "recorded": final[primary],
            "published": _published(view, start_weights, config.data, preprocessing),
            "source": str(run.directory),
        }
        if "detector" in record:
            row["detector"] = record["detector"]
        if config.model.attention != "none" and config.attention.init == "random":
            row["published"] = None  # random gates change the network before the first step
        shared = {key: value for key, value in result_config(config).items() if not key.startswith(_FREE)}
        if config.model.attention != "cbam":
            del shared["runtime.fused_cbam"]
        if record.get("backbone_start_sha256"):
            shared[START_WEIGHTS] = record["backbone_start_sha256"]
        shared["batch per process"] = record.get("batch_per_process", config.recipe.batch_size)
        return cls(model, preprocessing, row, record, _portable(config), shared)

    @classmethod
    def of_published(
        cls,
        name: str,
        model: nn.Module,
        data: DataConfig,
        preprocessing: Preprocessing,
        source: str,
        entry: Any | None = None,
        detector: str | None = None,
    ) -> "TableEntry":
        """Return the entry of a network that was not trained here.

        Args:
            name: the network's name for `models.build`.
            source: origin of its weights.
            entry: torchvision's entry for the weights; None if they are not published.
            detector: name of the detector's preset; None for classification.
        """
        view = VIEWS[data.task]
        row = {
            "model": label(name),
            "attention": "none",
            "seed": None,
            "epochs": 0,
            "recipe": "",
            "attention_lr_factor": 1.0,
            **dict.fromkeys(GATE_VALUES),
            "weights": "published",
            "parameters": complexity.parameters(model),
            "gflops": complexity.gflops(model, preprocessing.crop),
            f"{view.keys[0]}_start": None,
            "recorded": None,
            "published": _published(view, entry, data, preprocessing),
            "source": f"{source} (sha256 {checkpoint.sha256(model.state_dict())[:16]})" if entry is None else source,
        }
        if detector is not None:
            row["detector"] = detector
        return cls(model, preprocessing, row, record={}, config="", shared_config={})


# Keys of records and rows on the gates of a network.
GATE_VALUES = ("gate_movement_mean", "gate_movement_largest", "gate_saturation_mean", "gate_saturation_largest")

START_WEIGHTS = "digest of the backbone's start weights"

# The keys in which runs of one table may differ.
_FREE = (
    *("model.name", "model.library", "model.factory", "model.attention", "attention.", "seed"),
    "runtime.eval_batch_size",
    *("recipe.attention_lr_factor", "recipe.last_norms_lr_factor", "recipe.decay_attention"),
)


def _portable(config: TrainConfig) -> str:
    """Return a run's configuration as YAML, without the folder of the images, which differs between machines."""
    data = replace(config.data, root="???")  # OmegaConf's marker of a mandatory value
    return OmegaConf.to_yaml(OmegaConf.structured(replace(config, data=data)))


def _published(view: View, entry: Any | None, data: DataConfig, preprocessing: Preprocessing) -> float | None:
    return None if entry is None else view.published(entry, data, preprocessing)
