"""The few-label study: does a pre-training help on this target, from how many labelled cases on, and how fast?"""

from nnunet_pretrain.study.design import StudyOptions
from nnunet_pretrain.study.study import run_study

__all__ = ["StudyOptions", "run_study"]
