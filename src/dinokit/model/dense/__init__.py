"""Heads that say something about every pixel: segmentation and depth, linear and DPT, in the layout of Meta's released heads."""

from dinokit.model.dense.dpt import DptDepth, DptSegmentation
from dinokit.model.dense.linear import LinearDepth, LinearSegmentation
from dinokit.model.dense.network import DenseHead, DenseModel, build_head
from dinokit.model.dense.spec import DenseSpec, DepthRule, HeadKind, Task, dense_spec

__all__ = [
    "DenseHead",
    "DenseModel",
    "DenseSpec",
    "DepthRule",
    "DptDepth",
    "DptSegmentation",
    "HeadKind",
    "LinearDepth",
    "LinearSegmentation",
    "Task",
    "build_head",
    "dense_spec",
]
