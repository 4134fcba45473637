"""Tiny models of the Hugging Face surface, for its tests."""

from __future__ import annotations

from typing import Any

import torch

from dinokit.compat.hf import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}


def plain(**changes: Any) -> Any:
    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config(**TINY | changes)).eval()


def registers(**changes: Any) -> Any:
    torch.manual_seed(0)
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY | changes)).eval()


def classifier(**changes: Any) -> Any:
    torch.manual_seed(0)
    return Dinov2ForImageClassification(Dinov2Config(**TINY | changes)).eval()


def pixels(height: int = 70, width: int = 70, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
