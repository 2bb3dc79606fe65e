"""Types of the values read from files; a file with a missing key or a value of the wrong type is rejected."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import UserError

NUMBER = (int, float)
TEXT = (str,)

Schema = Mapping[str, tuple[type, ...]]

# record.json of a started run.
RUNNING: Schema = {
    "status": TEXT,
    "model": TEXT,
    "attention": TEXT,
    "seed": (int,),
    "epochs": (int,),
    "classes": (int,),
    "class_names": (list,),
    "parameters": (int,),
    "gflops": NUMBER,
    "preprocessing": (dict,),
    "data_fingerprint": TEXT,
    "start_weights_sha256": TEXT,
}

# Keys that a finished run adds, besides its task's metrics.
FINISHED: Schema = {
    **RUNNING,
    "weights_sha256": TEXT,
    "predictions_sha256": TEXT,
    "history": (list,),
}

# Keys that are missing from records of earlier versions, or of runs without attention.
FINISHED_SINCE: Schema = {
    "weights": TEXT,
    "trained_parameters": (int,),
    "train_seconds": NUMBER,
    "data_wait_seconds": NUMBER,
    "gate_movement_mean": NUMBER,
    "gate_movement_largest": NUMBER,
    "gate_movement": (dict,),
    "gate_saturation_mean": NUMBER,
    "gate_saturation_largest": NUMBER,
    "gate_saturation": (dict,),
    "calibration_images": (int,),
}

PREPROCESSING: Schema = {"resize": (int,), "crop": (int,), "interpolation": TEXT, "mean": (list,), "std": (list,)}

# checkpoint/last.pt.
CHECKPOINT: Schema = {"model": (dict,), "optimizer": (dict,), "scaler": (dict,), "position": (dict,)}
POSITION: Schema = {"epoch": (int,), "step": (int,), "history": (list,)}
POSITION_SINCE: Schema = {"seconds": NUMBER, "waiting": NUMBER}  # which checkpoints of earlier versions lack


def require_types(values: Any, schema: Schema, source: Path | str, advice: str) -> dict[str, Any]:
    """Return the values of a file after checking that they have the schema's keys and types, and are finite.

    Args:
        source: the file, for the message.
        advice: a sentence on what to do about a file that does not fit.

    Raises:
        UserError: naming the file and the first key that is missing, of another type or not finite.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source} does not contain keys and values. {advice}")
    for key, types in schema.items():
        if key not in values:
            raise UserError(f"{source} lacks the key {key}. {advice}")
        value = values[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(each.__name__ for each in types)
            raise UserError(f"{key} in {source} is {value!r:.60}, not {expected}. {advice}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} in {source} is {value}, not a finite number. {advice}")
    return values
