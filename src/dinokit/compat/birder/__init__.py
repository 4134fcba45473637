"""Birder's face of DINOv2 with registers: `import dinokit.compat.birder as birder` and its model cards run.

Promise: equal to Birder 0.8 on the recorded references, but where docs/birder.md says otherwise and why.
Source: Birder's public API (0.3.3 to 0.8.4) and the cards of vit_reg4_{s,b,l}14_nps_ls_dino-v2-lvd142m.
"""

from dinokit.compat.birder.load import (
    ModelInfo,
    UnknownWeightsError,
    get_channels_from_signature,
    get_size_from_signature,
    list_pretrained_models,
    load_pretrained_model,
    load_pretrained_model_and_transform,
)
from dinokit.compat.birder.net import BirderNet
from dinokit.compat.birder.transforms import classification_transform

__all__ = [
    "BirderNet",
    "ModelInfo",
    "UnknownWeightsError",
    "classification_transform",
    "get_channels_from_signature",
    "get_size_from_signature",
    "list_pretrained_models",
    "load_pretrained_model",
    "load_pretrained_model_and_transform",
]
