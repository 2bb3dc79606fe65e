"""The tasks by name."""

from engine.tasks.base import Task
from engine.tasks.classification import Classification

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification,)}
