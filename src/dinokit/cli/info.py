"""`dinokit info`: what a checkpoint is, without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import loading_options, open_model, say, size_callback
from dinokit.errors import HubError

if TYPE_CHECKING:
    from dinokit.config import ViTConfig
    from dinokit.weights.load import Pretrained
    from dinokit.weights.zoo import Source


@click.command(no_args_is_help=True)
@click.argument("model")
@click.option(
    "--image-size", callback=size_callback, default="224", show_default=True, metavar="H[xW]", help="For the FLOPs."
)
@click.option("--no-hash", is_flag=True, help="Do not read the whole file for its sha256.")
@click.option("--download", is_flag=True, help="Fetch a released model that is not on disk.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    model: str, image_size: tuple[int, int], no_hash: bool, download: bool, as_json: bool, offline: bool, **loading: Any
) -> None:
    """Tell what MODEL is: a file, a folder, a hub id or any name of `dinokit models`.

    Reads and checks the whole checkpoint as loading does. For a released model that is not on disk, tells what is known of it.

    \b
    dinokit info weights/dinov2_vitb14_reg4_pretrain.pth
    dinokit info facebook/dinov2-with-registers-small --json
    """
    from dinokit.weights import zoo

    known = None if Path(model).exists() else zoo.lookup(model.partition("@")[0])
    try:
        pre = open_model(model, offline=offline or (known is not None and not download), **loading)
    except HubError:
        if known is None or known.release is None or download:
            raise
        facts = {"name": model, "on_disk": False, "license": zoo.LICENSE, **_network(_published(known), image_size)}
        say(f"{model} is not on disk; this is what is known of it. --download fetches it.")
    else:
        facts = _facts(pre, image_size, with_hash=not no_hash)
    click.echo(json.dumps(facts, indent=2) if as_json else _table(facts))


for _option in reversed(loading_options()):
    command = _option(command)


def _published(source: Source) -> ViTConfig:
    """The architecture, with the position rule of the publisher whose name was given."""
    from dinokit.weights.layouts import LAYOUTS

    assert source.release is not None
    config = source.release.config
    layout = {"hub": "hf", "meta": "official"}.get(source.origin, source.origin)
    return config.replace(position=LAYOUTS[layout].position_rule(config.num_register_tokens))


def _facts(pre: Pretrained, image_size: tuple[int, int], *, with_hash: bool) -> dict[str, Any]:
    found = pre.provenance
    facts: dict[str, Any] = {
        "name": found.name,
        "on_disk": True,
        "files": [str(path) for path in found.files],
        "bytes": sum(path.stat().st_size for path in found.files),
        "layout": found.layout,
        "container": found.container or None,
        "revision": found.revision,
        "license": found.license,
        "verified": found.verified,
        "filled_with_zeros": list(found.filled),
        "missing": list(found.missing),
        "unexpected": list(found.unexpected),
        "transform": pre.transform.to_dict(),
        "classifier": None if pre.head is None else {"classes": pre.head.linear.out_features, "reads": pre.head.inputs},
        **_network(pre.config, image_size),
    }
    if with_hash:
        facts["sha256"] = found.sha256
    return facts


def _network(config: ViTConfig, image_size: tuple[int, int]) -> dict[str, Any]:
    from dinokit.model.cost import flops, num_parameters

    return {
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "ffn": config.ffn,
        "ffn_dim": config.ffn_dim,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "num_register_tokens": config.num_register_tokens,
        "trained_image_size": list(config.image_size),
        "position_rule": {"offset": config.position.offset, "antialias": config.position.antialias},
        "parameters": num_parameters(config),
        "image_size": list(image_size),
        "tokens": config.num_prefix_tokens
        + (image_size[0] // config.patch_size) * (image_size[1] // config.patch_size),
        "flops": flops(config, image_size),
    }


def _table(facts: dict[str, Any]) -> str:
    """The same facts, one a line, for reading."""
    rule = facts["position_rule"]
    height, width = facts["image_size"]
    lines = {
        "name": facts["name"],
        "files": ", ".join(facts.get("files", [])) or "not on disk",
        "size": f"{facts['bytes']:,} bytes" if "bytes" in facts else None,
        "layout": facts.get("layout")
        and facts["layout"] + (f", under {facts['container']!r}" if facts["container"] else ""),
        "revision": facts.get("revision"),
        "sha256": facts.get("sha256"),
        "license": facts["license"],
        "network": f"{facts['embed_dim']} wide, {facts['depth']} blocks, {facts['num_heads']} heads, "
        f"{facts['ffn']} of {facts['ffn_dim']}, patches of {facts['patch_size']}, {facts['num_channels']} channels",
        "registers": facts["num_register_tokens"] or "none",
        "trained at": f"{facts['trained_image_size'][0]} x {facts['trained_image_size'][1]} pixels",
        "positions": f"offset {rule['offset']}, {'antialias' if rule['antialias'] else 'no antialias'}",
        "parameters": f"{facts['parameters']:,}",
        f"at {height} x {width}": f"{facts['tokens']:,} tokens, {facts['flops'] / 1e9:.1f} GFLOP an image",
        "classifier": facts.get("classifier")
        and f"{facts['classifier']['classes']} classes, reads {facts['classifier']['reads']}",
        "zeros for": ", ".join(facts.get("filled_with_zeros", [])) or None,
        "missing": ", ".join(facts.get("missing", [])[:10]) or None,
        "unexpected": ", ".join(facts.get("unexpected", [])[:10]) or None,
        "complete": {True: "yes, every tensor", False: "NO"}.get(facts.get("verified", "")),
    }
    return "\n".join(f"{name:<13} {value}" for name, value in lines.items() if value is not None)
