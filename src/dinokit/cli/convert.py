"""`dinokit convert`: a checkpoint into another layout, read back and compared before it is called done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import loading_options, open_model, say
from dinokit.errors import WeightsError

if TYPE_CHECKING:
    from dinokit.weights.load import Pretrained

LAYOUTS = ("hf", "hf5", "official", "timm", "birder", "birder_legacy")
PROOF_TOLERANCE = 1e-5


@click.command(no_args_is_help=True)
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--to", "layout", type=click.Choice(LAYOUTS), default="hf", show_default=True, help="The layout to write."
)
@click.option("--head", help="A file with a linear classifier to write along.")
@click.option(
    "--keep-position-rule", is_flag=True, help="State the source's position rule in an hf folder (dinokit follows it)."
)
@click.option("--overwrite", is_flag=True, help="Replace TARGET if it is there.")
@click.option("--json", "as_json", is_flag=True, help="The proof as one JSON object.")
def command(
    source: str,
    target: Path,
    layout: str,
    head: str | None,
    keep_position_rule: bool,
    overwrite: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Write the checkpoint SOURCE to TARGET in another layout, and prove it equal.

    A TARGET that ends in .safetensors, .pth, .pt or .bin becomes one file, any other a folder (hf and timm).

    \b
    dinokit convert dinov2_vitb14_reg4_pretrain.pth my-model/
    dinokit convert my-model/ model.pt --to birder
    """
    from dinokit.weights.save import save

    pre = open_model(source, head=Path(head) if head else None, **loading)
    try:
        save(pre, target, layout, overwrite=overwrite, keep_position_rule=keep_position_rule)
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        raise click.UsageError(str(error)) from error
    proof = {"source": source, "target": str(target), "from": pre.provenance.layout, "to": layout, **prove(pre, target)}
    if as_json:
        click.echo(json.dumps(proof, indent=2))
    else:
        click.echo(_report(proof))
    if not proof["equal"]:
        raise WeightsError(f"{target} is not equal to {source}; do not use it, and report this, please.")
    say(f"wrote {target}")


for _option in reversed(loading_options()):
    command = _option(command)


def prove(pre: Pretrained, target: Path) -> dict[str, Any]:
    """Read `target` back and compare: every tensor bit for bit, and the tokens of random images at two sizes.

    Tokens are compared under the source's position rule. timm and Birder keep the class token and its position as one sum; there
    the sum is compared. What the layout has no place for is named in `not_stored`.
    """
    import torch

    from dinokit.model import VisionTransformer
    from dinokit.weights.layouts import LAYOUTS
    from dinokit.weights.load import load

    again = load(target, num_heads=pre.config.num_heads, image_size=pre.config.image_size)
    not_stored = sorted(name for name in LAYOUTS[again.provenance.layout].lacks if pre.model.state_dict()[name].any())
    ours, theirs = (_comparable(model, again.provenance.layout) for model in (pre, again))
    different = sorted(name for name in ours if not torch.equal(ours[name], theirs[name]))
    network = VisionTransformer(again.config.replace(position=pre.config.position)).eval()
    network.load_state_dict(again.model.state_dict())
    larger = tuple(side + 2 * pre.config.patch_size for side in pre.config.image_size)
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for name, size in (("trained", pre.config.image_size), ("other", larger)):
        images = torch.randn(1, pre.config.num_channels, *size, generator=generator)
        with torch.no_grad():
            difference = pre.model(images).sequence - network(images).sequence
        errors[f"max_difference_{name}_size"] = difference.abs().max().item()
    return {
        "tensors": len(ours),
        "tensors_equal_bit_for_bit": len(ours) - len(different),
        "different": different,
        "not_stored": not_stored,
        **errors,
        "position_rule_source": list(pre.config.position),
        "position_rule_target": list(again.config.position),
        "equal": not different and max(errors.values()) <= PROOF_TOLERANCE,
    }


def _comparable(pre: Pretrained, layout: str) -> dict[str, Any]:
    """Native tensors that `layout` keeps, the class token and its position as their sum."""
    from dinokit.weights.layouts import LAYOUTS

    state = {name: tensor for name, tensor in pre.model.state_dict().items() if name not in LAYOUTS[layout].lacks}
    positions = state.pop("pos_embed")
    return state | {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}


def _report(proof: dict[str, Any]) -> str:
    lines = [
        f"{proof['from']} -> {proof['to']}",
        f"tensors equal bit for bit   {proof['tensors_equal_bit_for_bit']} of {proof['tensors']}"
        + (f"; different: {', '.join(proof['different'][:10])}" if proof["different"] else ""),
        f"tokens at the trained size  max difference {proof['max_difference_trained_size']:.1e}",
        f"tokens at another size      max difference {proof['max_difference_other_size']:.1e} (under one position rule)",
    ]
    if proof["not_stored"]:
        lines.append(
            f"note: {proof['to']} has no place for {', '.join(proof['not_stored'])}; only masked inputs are affected."
        )
    if proof["position_rule_source"] != proof["position_rule_target"]:
        lines.append(
            f"note: away from the trained size {proof['to']} resamples positions with (offset, antialias) = "
            f"{tuple(proof['position_rule_target'])}, the source with {tuple(proof['position_rule_source'])}; tokens differ there."
        )
    return "\n".join(lines)
