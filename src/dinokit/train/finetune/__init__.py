"""Fine-tuning with labels: classifiers, segmentation and depth on any backbone."""

from dinokit.train.finetune.loop import Chosen, finetune, read_log
from dinokit.train.finetune.recipe import CLASSIFY, DEPTH, SEGMENTATION, FinetuneRecipe
from dinokit.train.finetune.run import finetune_classifier, finetune_dense

__all__ = [
    "CLASSIFY",
    "DEPTH",
    "SEGMENTATION",
    "Chosen",
    "FinetuneRecipe",
    "finetune",
    "finetune_classifier",
    "finetune_dense",
    "read_log",
]
