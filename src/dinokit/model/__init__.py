"""The network: an image batch to `Tokens`, and readers of its residual stream."""

from dinokit.model.capture import attention_weights, hidden_states, intermediate_tokens
from dinokit.model.heads import LinearHead
from dinokit.model.resize import resize_positions
from dinokit.model.vit import VisionTransformer

__all__ = [
    "LinearHead",
    "VisionTransformer",
    "attention_weights",
    "hidden_states",
    "intermediate_tokens",
    "resize_positions",
]
