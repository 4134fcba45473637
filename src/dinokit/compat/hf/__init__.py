"""The documented Hugging Face surface of DINOv2 and DINOv2 with registers. See docs/huggingface.md for what is equal."""

from dinokit.compat.hf.auto import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification
from dinokit.compat.hf.backbone import Dinov2Backbone, Dinov2WithRegistersBackbone
from dinokit.compat.hf.batch_feature import BatchFeature
from dinokit.compat.hf.config import Dinov2Config, Dinov2WithRegistersConfig
from dinokit.compat.hf.config_base import PretrainedConfig
from dinokit.compat.hf.image_processing import AutoImageProcessor, BitImageProcessor
from dinokit.compat.hf.modeling import (
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2PreTrainedModel,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    Dinov2WithRegistersPreTrainedModel,
)
from dinokit.compat.hf.outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput, ModelOutput

__all__ = [
    "AutoBackbone",
    "AutoConfig",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "BackboneOutput",
    "BaseModelOutputWithPooling",
    "BatchFeature",
    "BitImageProcessor",
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Model",
    "Dinov2PreTrainedModel",
    "Dinov2WithRegistersBackbone",
    "Dinov2WithRegistersConfig",
    "Dinov2WithRegistersForImageClassification",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersPreTrainedModel",
    "ImageClassifierOutput",
    "ModelOutput",
    "PretrainedConfig",
]
