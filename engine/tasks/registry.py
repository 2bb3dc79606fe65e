"""The tasks by name."""

from engine.tasks.base import Task
from engine.tasks.classification import Classification
from engine.tasks.detection import Detection, VocDetection

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, Detection, VocDetection)}
