"""The released networks and every name that people call them by. A table; nothing here touches the network.

Source: model cards of facebookresearch/dinov2, the hub's facebook/, timm/ and birder-project/ pages. All weights are Apache-2.0.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dinokit.config import VARIANTS, ViTConfig

META_BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"
LICENSE = "Apache-2.0"
BUNDLED = Path(__file__).parent / "bundled"
Origin = Literal["hub", "meta", "timm", "birder", "package"]


@dataclass(frozen=True, kw_only=True)
class Release:
    """One published network under the names of its publishers."""

    variant: str
    size: str
    registers: bool
    hub_id: str
    meta: str
    timm: str
    birder: str | None = None

    @property
    def config(self) -> ViTConfig:
        """Its architecture."""
        return VARIANTS[self.variant]

    @property
    def classifier_id(self) -> str:
        """Hub id of the same network with Meta's one-layer ImageNet classifier."""
        return f"{self.hub_id}-imagenet1k-1-layer"

    @property
    def meta_stem(self) -> str:
        """Folder and beginning of Meta's file names: files say `_reg4` where torch.hub says `_reg`."""
        plain = self.meta.removesuffix("_reg")
        return f"{plain}/{plain}{'_reg4' if self.registers else ''}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a name leads: a hub repository, files of Meta's server, or a folder of this package.

    `sha256` lists accepted sums (any, where a publisher replaced a file); empty where none was published. `head_layers` is 1
    or 4 where the name includes a linear classifier of Meta's.
    """

    origin: Origin
    name: str
    repo_id: str | None = None
    filename: str | None = None
    url: str | None = None
    folder: Path | None = None
    release: Release | None = None
    sha256: tuple[str, ...] = ()
    head_layers: int | None = None
    corrected_from: str | None = None


def _release(letter: str, size: str, timm_size: str, registers: bool, *, birder: bool) -> Release:
    return Release(
        variant=f"vit{letter}14{'_reg' if registers else ''}",
        size=size,
        registers=registers,
        hub_id=f"facebook/dinov2-{'with-registers-' if registers else ''}{size}",
        meta=f"dinov2_vit{letter}14{'_reg' if registers else ''}",
        timm=f"vit_{timm_size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m",
        birder=f"vit_reg4_{letter}14_nps_ls_dino-v2-lvd142m" if birder else None,
    )


RELEASES: tuple[Release, ...] = (
    _release("s", "small", "small", True, birder=True),
    _release("b", "base", "base", True, birder=True),
    _release("l", "large", "large", True, birder=True),
    _release("g", "giant", "giant", True, birder=False),
    _release("s", "small", "small", False, birder=False),
    _release("b", "base", "base", False, birder=False),
    _release("l", "large", "large", False, birder=False),
    _release("g", "giant", "giant", False, birder=False),
)
DEFAULT_MODEL = "facebook/dinov2-with-registers-small"
OFFLINE_MODEL = "dinokit/tiny-procedural-reg4"

# Sums that a publisher or mirror states. The large Birder file was replaced at 0.4.0 under the same name; both hold the same tensors.
SHA256: dict[str, tuple[str, ...]] = {
    "vit_reg4_s14_nps_ls_dino-v2-lvd142m": ("c08263b219669d3933ee83f6b3be16ddecde046472b7869862312c6bdf89190f",),
    "vit_reg4_b14_nps_ls_dino-v2-lvd142m": ("c091d95be4c0ab6102ed7d4a183b3ab8728e2fb73969c5811381046d34b53944",),
    "vit_reg4_l14_nps_ls_dino-v2-lvd142m": (
        "441721029ca0ef85582bc8822ec91d780ee442eb3d06b04fb5e4662c9317b52d",
        "56d39cbaed8b7da72175b7b3a0c9419e71aabc1e9516567703a39ba05244a44f",
    ),
    "tiny-procedural-reg4": ("947b3709d5a70b0bb091330149a34b356d7ed94e49f43fa43e6c8350e5ae1970",),
    "tiny-procedural": ("af3823482780ef88db2a625804675c176a9d7727927875cb8d1fce3f5d840ab8",),
    "dinov2_vitb14_reg": ("73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71",),
}

# Ids that documents, papers and posts print and that no hub has.
_MISSPELT = {
    f"facebook/dinov2_with_registers-{r.size}{tail}": f"facebook/dinov2-with-registers-{r.size}{tail}"
    for r in RELEASES
    for tail in ("", "-imagenet1k-1-layer")
} | {"google/dinov2-base-patch16-224": "facebook/dinov2-base"}


def _sources() -> dict[str, Source]:
    table: dict[str, Source] = {}
    for r in RELEASES:
        hub = Source(origin="hub", name=r.hub_id, repo_id=r.hub_id, release=r)
        short = r.hub_id.removeprefix("facebook/")
        alias = f"{r.size}-reg" if r.registers else r.size
        table |= {r.hub_id: hub, short: hub, alias: hub}
        classifier = Source(origin="hub", name=r.classifier_id, repo_id=r.classifier_id, release=r)
        table |= {r.classifier_id: classifier, r.classifier_id.removeprefix("facebook/"): classifier}
        url = f"{META_BASE_URL}/{r.meta_stem}_pretrain.pth"
        for suffix, layers in (("", None), ("_lc", 4)):
            table[r.meta + suffix] = Source(
                origin="meta",
                name=r.meta + suffix,
                url=url,
                release=r,
                sha256=SHA256.get(r.meta, ()),
                head_layers=layers,
            )
        timm = Source(origin="timm", name=r.timm, repo_id=f"timm/{r.timm}", release=r)
        table |= {
            r.timm: timm,
            r.timm.removesuffix(".lvd142m"): timm,
            f"timm/{r.timm}": timm,
            f"hf-hub:timm/{r.timm}": timm,
        }
        if r.birder:
            birder = Source(
                origin="birder",
                name=r.birder,
                repo_id=f"birder-project/{r.birder}",
                filename=f"{r.birder}.pt",
                release=r,
                sha256=SHA256[r.birder],
            )
            hub_name = r.birder.replace("-", "_")  # as in Birder's torch.hub
            table |= {r.birder: birder, hub_name: birder, f"birder-project/{r.birder}": birder}
    for name in ("tiny-procedural-reg4", "tiny-procedural"):
        package = Source(origin="package", name=f"dinokit/{name}", folder=BUNDLED / name, sha256=SHA256[name])
        table |= {package.name: package, name: package}
    return table


SOURCES: dict[str, Source] = _sources()
"""Every known name."""


def lookup(name: str) -> Source | None:
    """The source behind a name; a known misspelling leads to the right one, with `corrected_from` set. None if unknown."""
    if name in _MISSPELT:
        right = SOURCES[_MISSPELT[name]]
        return Source(origin="hub", name=right.name, repo_id=right.repo_id, release=right.release, corrected_from=name)
    return SOURCES.get(name)


def head_url(release: Release, layers: int) -> str:
    """Where Meta keeps the ImageNet classifier of this backbone that reads the last 1 or 4 blocks."""
    return f"{META_BASE_URL}/{release.meta_stem}_linear{'4' if layers == 4 else ''}_head.pth"


def suggestions(name: str, limit: int = 3) -> list[str]:
    """Known names that look like `name`, best first."""
    return difflib.get_close_matches(name, SOURCES, n=limit, cutoff=0.75)


def did_you_mean(name: str) -> str:
    """A question to end a sentence with, or nothing."""
    close = suggestions(name, 1)
    return f" Did you mean {close[0]}?" if close else ""
