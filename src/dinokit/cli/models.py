"""`dinokit models`: the released networks and all their names, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("filter", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where downloads are kept.")
def command(filter: str, as_json: bool, cache_dir: Path | None) -> None:  # noqa: A002 - the name that users see
    """List the released models whose names contain FILTER, with the names that each publisher gave them.

    \b
    dinokit models
    dinokit models giant --json
    """
    from dinokit.model.cost import flops, num_parameters
    from dinokit.weights import hub, zoo

    entries: list[dict[str, Any]] = []
    for release in zoo.RELEASES:
        names = [name for name, source in zoo.SOURCES.items() if source.release is release]
        if filter and not any(filter.lower() in name.lower() for name in names):
            continue
        cached = [
            name for name in dict.fromkeys(zoo.SOURCES[name].name for name in names) if hub.is_cached(name, cache_dir)
        ]
        entries.append(
            {
                "hub_id": release.hub_id,
                "classifier_id": release.classifier_id,
                "meta": release.meta,
                "timm": release.timm,
                "birder": release.birder,
                "names": names,
                "registers": release.config.num_register_tokens,
                "embed_dim": release.config.embed_dim,
                "parameters": num_parameters(release.config),
                "gflops_224": round(flops(release.config, (224, 224)) / 1e9, 1),
                "license": zoo.LICENSE,
                "cached": cached,
            }
        )
    if as_json:
        click.echo(json.dumps(entries, indent=2))
        return
    bundled = [name for name, source in zoo.SOURCES.items() if name == source.name and source.origin == "package"]
    bundled = [name for name in bundled if filter.lower() in name]
    if bundled:
        click.echo(f"in the package, trained on calculated images alone: {', '.join(bundled)}")
    if not entries and not bundled:
        raise click.UsageError(f"no released model has {filter!r} in a name.{zoo.did_you_mean(filter)}")
    for entry in entries:
        mark = "  [on disk: " + ", ".join(entry["cached"]) + "]" if entry["cached"] else ""
        click.echo(
            f"{entry['hub_id']:<40} {entry['embed_dim']:>5} wide {entry['registers']} registers "
            f"{entry['parameters'] / 1e6:>7.1f} M {entry['gflops_224']:>6.1f} GFLOP{mark}"
        )
        others = [entry["meta"], f"{entry['meta']}_lc", entry["timm"], entry["birder"], entry["classifier_id"]]
        click.echo("    also: " + ", ".join(name for name in others if name))
