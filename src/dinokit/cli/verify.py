"""`dinokit verify`: a released model against what was published of it: sum, names of tensors, values on a known photograph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import open_model, say
from dinokit.errors import WeightsError

if TYPE_CHECKING:
    from dinokit.weights.load import Pretrained


@click.command(no_args_is_help=True)
@click.argument("name")
@click.option(
    "--image", type=click.Path(path_type=Path), help="COCO val2017 000000039769.jpg, for the published values."
)
@click.option("--revision", help="Commit, tag or branch of the hub repository.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where downloads are kept.")
@click.option("--offline", is_flag=True, help="Use only what is on disk.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(name: str, image: Path | None, as_json: bool, **loading: Any) -> None:
    """Check the released model NAME against what was published of it.

    Loads strictly, compares the size, the sha256 where a publisher states one, and with --image the first values of its tokens.
    Each check ends in pass, fail or unknown (nothing was published); a failure exits with 4.

    \b
    dinokit verify facebook/dinov2-with-registers-base --image 000000039769.jpg
    dinokit verify vit_reg4_b14_nps_ls_dino-v2-lvd142m
    """
    from dinokit.weights import zoo

    source = zoo.lookup(name.partition("@")[0])
    if source is None or source.release is None:
        raise click.BadParameter(
            f"{name!r} is no released model.{zoo.did_you_mean(name)} See: dinokit models.", param_hint="NAME"
        )
    pre = open_model(name, **loading)
    checks = [
        _check("strict load", pre.provenance.verified, f"every tensor, {pre.provenance.layout} layout"),
        _architecture(pre, source.release.variant),
        _sum(pre, source.sha256),
        _values(pre, source.name, image),
    ]
    if as_json:
        click.echo(json.dumps({"name": name, "checks": checks}, indent=2))
    else:
        for check in checks:
            click.echo(f"{check['outcome']:<8} {check['check']:<13} {check['detail']}")
    failed = [check["check"] for check in checks if check["outcome"] == "fail"]
    if failed:
        raise WeightsError(f"{name} is not what was published: {', '.join(failed)} failed.")
    say(f"{name}: nothing speaks against it.")


def _check(name: str, passed: bool | None, detail: str) -> dict[str, str]:
    return {"check": name, "outcome": {True: "pass", False: "fail", None: "unknown"}[passed], "detail": detail}


def _architecture(pre: Pretrained, variant: str) -> dict[str, str]:
    from dinokit.config import VARIANTS

    published = VARIANTS[variant].replace(position=pre.config.position)
    found = pre.config.replace(drop_path=(), layer_scale_init=1.0)
    return _check("architecture", found == published, f"{variant}: {found.embed_dim} wide, {found.depth} blocks")


def _sum(pre: Pretrained, accepted: tuple[str, ...]) -> dict[str, str]:
    found = pre.provenance.sha256
    return _check(
        "sha256", found in accepted if accepted else None, found + ("" if accepted else " (none was published)")
    )


def _values(pre: Pretrained, name: str, image: Path | None) -> dict[str, str]:
    """Tokens on the photograph, under the position rule with which the published ones were recorded."""
    import torch

    from dinokit.model import VisionTransformer
    from dinokit.weights.references import REFERENCES

    reference = REFERENCES.get(name)
    if reference is None:
        return _check("values", None, f"none were published; there are some of {', '.join(REFERENCES)}")
    if image is None:
        return _check("values", None, "give --image 000000039769.jpg (COCO val2017) to compare")
    same_rule = VisionTransformer(pre.config.replace(position=reference.position)).eval()
    same_rule.load_state_dict(pre.model.state_dict())
    with torch.no_grad():
        found = same_rule(pre.pixels(image)).sequence[0, :3, :3]
    error = (found - torch.tensor(reference.values)).abs().max().item()
    return _check(
        "values", error <= reference.tolerance, f"max difference {error:.1e}, allowed {reference.tolerance:.0e}"
    )
