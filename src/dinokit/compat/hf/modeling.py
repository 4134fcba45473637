"""`Dinov2Model`, `Dinov2ForImageClassification` and their twins with registers: names in, one run of the network, names out.

Promise: arguments, their order, outputs, losses and errors as in transformers' documents; numbers as transformers 5.23's.
Source: transformers' documentation pages "DINOv2" and "DINOv2 with Registers".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dinokit.compat.hf import naming
from dinokit.compat.hf.base import build_network, check_inputs, run, told
from dinokit.compat.hf.config import Dinov2Config, Dinov2ConfigBase, Dinov2WithRegistersConfig
from dinokit.compat.hf.outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from dinokit.compat.hf.pretrained import PreTrainedModel
from dinokit.model import VisionTransformer


class Dinov2PreTrainedModel(PreTrainedModel):
    """Base of the models without registers."""

    config_class = Dinov2Config
    base_model_prefix = "dinov2"


class Dinov2WithRegistersPreTrainedModel(PreTrainedModel):
    """Base of the models with registers."""

    config_class = Dinov2WithRegistersConfig
    base_model_prefix = "dinov2_with_registers"


class BareModel(PreTrainedModel):
    """The network alone: an image batch to its sequence of tokens."""

    def __init__(self, config: Dinov2ConfigBase) -> None:
        super().__init__(config)
        self.vit = build_network(config)
        naming.install(self)
        self.init_weights()

    @property
    def network(self) -> VisionTransformer:
        """The native network."""
        return self.vit

    def forward(
        self,
        pixel_values: Float[Tensor, "b c h w"] | None = None,
        bool_masked_pos: Shaped[Tensor, "b n"] | None = None,
        head_mask: Float[Tensor, "..."] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[object, ...]:
        """Tokens of a batch; see `BaseModelOutputWithPooling`. A tuple of what it holds where `return_dict` is false.

        `pixel_values` are normalised pixels, cast to the dtype of the weights; any size of at least one patch.
        `bool_masked_pos` (any dtype; nonzero means masked) says which patches the mask token replaces. `head_mask`, (heads)
        or (layers, heads), scales heads: 1 keeps, 0 removes. What is None is as the configuration says.

        Raises:
            ValueError: no pixels, a wrong number of channels, a mask of a wrong shape or without a mask token.
        """
        config = self.config
        found = run(
            self.vit,
            check_inputs(config, pixel_values, bool_masked_pos),
            bool_masked_pos,
            head_mask,
            output_attentions=told(output_attentions, config.output_attentions),
            output_hidden_states=told(output_hidden_states, config.output_hidden_states),
        )
        sequence = self.vit.norm(found.sequence)
        output = BaseModelOutputWithPooling(
            last_hidden_state=sequence,
            pooler_output=sequence[:, 0],
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )
        return output if told(return_dict, config.use_return_dict) else output.to_tuple()


class Dinov2Model(BareModel, Dinov2PreTrainedModel):
    """DINOv2 without registers."""


class Dinov2WithRegistersModel(BareModel, Dinov2WithRegistersPreTrainedModel):
    """DINOv2 with registers, which stand between the class token and the patches."""


class ImageClassifier(PreTrainedModel):
    """The network and a linear layer on the class token and the mean patch token, both normed; registers take no part."""

    model_class: type[BareModel]

    def __init__(self, config: Dinov2ConfigBase) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.add_module(self.base_model_prefix, self.model_class(config))
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "b c h w"] | None = None,
        head_mask: Float[Tensor, "..."] | None = None,
        labels: Shaped[Tensor, "..."] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[object, ...]:
        """Class scores of a batch, and the loss against `labels` where given (see `classification_loss`).

        The other arguments, the tuple and the errors are those of the bare model.
        """
        config = self.config
        vit = self.network
        found = run(
            vit,
            check_inputs(config, pixel_values),
            None,
            head_mask,
            output_attentions=told(output_attentions, config.output_attentions),
            output_hidden_states=told(output_hidden_states, config.output_hidden_states),
        )
        sequence = vit.norm(found.sequence)
        patches = sequence[:, vit.config.num_prefix_tokens :]
        logits = self.classifier(torch.cat([sequence[:, 0], patches.mean(dim=1)], dim=1))
        output = ImageClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, config),
            logits=logits,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )
        return output if told(return_dict, config.use_return_dict) else output.to_tuple()


class Dinov2ForImageClassification(ImageClassifier, Dinov2PreTrainedModel):
    """A classifier on DINOv2 without registers; the network is `dinov2`, the linear layer `classifier`."""

    model_class = Dinov2Model


class Dinov2WithRegistersForImageClassification(ImageClassifier, Dinov2WithRegistersPreTrainedModel):
    """A classifier on DINOv2 with registers; the network is `dinov2_with_registers`, the linear layer `classifier`."""

    model_class = Dinov2WithRegistersModel


def classification_loss(
    logits: Float[Tensor, "b classes"], labels: Shaped[Tensor, "..."], config: Dinov2ConfigBase
) -> Float[Tensor, ""]:
    """Mean squared error, cross-entropy (-100 is left out) or binary cross-entropy, by `config.problem_type`.

    Where that is None it is told from the labels and written into `config`: one label means regression, whole numbers one
    class an image, anything else several.

    Raises:
        ValueError: the model has no classes.
    """
    number = config.num_labels
    if not number:
        raise ValueError("labels were given, but num_labels is 0: this model gives features, not classes.")
    if config.problem_type is None:
        if number == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    labels = labels.to(logits.device)
    if config.problem_type == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze()) if number == 1 else F.mse_loss(logits, labels)
    if config.problem_type == "single_label_classification":
        return F.cross_entropy(logits.view(-1, number), labels.view(-1).long())
    return F.binary_cross_entropy_with_logits(logits, labels)
