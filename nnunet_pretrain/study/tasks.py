"""The tasks a study knows."""

from __future__ import annotations

from nnunet_pretrain.study.classification import CLASSIFICATION
from nnunet_pretrain.study.segmentation import SEGMENTATION
from nnunet_pretrain.study.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (SEGMENTATION, CLASSIFICATION)}
