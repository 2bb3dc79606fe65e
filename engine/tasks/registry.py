"""The tasks by their name in configurations (`data.task`) and in table.json."""

from engine.tasks.base import Task
from engine.tasks.classification import Classification
from engine.tasks.detection import Detection, VocDetection

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "detection": Detection,
    "voc_detection": VocDetection,
}
