"""Names to files: local, cached, downloaded from a hub on loopback, and every way in which that fails."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import pytest

from dinokit.atomic import file_sha256, write_json
from dinokit.errors import HubError, StorageError, UnknownModelError, WeightsError
from dinokit.weights import files, hub, zoo
from dinokit.weights.hub import HubOptions, MissingFileError
from tests.weights.fakehub import COMMIT, running_hub


@pytest.fixture
def online(formats, tmp_path, monkeypatch):
    """A hub with one model, an empty cache, and the network switch on."""
    root = tmp_path / "served"
    shutil.copytree(formats / "reg" / "hf", root / "facebook" / "dinov2-with-registers-small")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running_hub(root) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def options(tmp_path):
    return HubOptions(cache_dir=tmp_path / "cache")


NAME = "facebook/dinov2-with-registers-small"


def test_a_hub_id_is_downloaded_once_and_then_needs_no_network(online, options):
    """The second time not one request leaves the machine."""
    folder = hub.fetch_model(NAME, options)
    assert files.read(folder).config["model_type"] == "dinov2_with_registers"
    assert folder.name == COMMIT
    asked = len(online.requests)
    assert hub.fetch_model(NAME, options) == folder
    assert hub.fetch_model(f"{NAME}@{COMMIT}", options) == folder
    weights = [path for method, path in online.requests[asked:] if "safetensors" in path]
    assert weights == []


def test_short_names_and_misspelt_ids_lead_to_the_same_files(online, options):
    """The ids that documents print and no hub has are corrected with a warning."""
    folder = hub.fetch_model(NAME, options)
    assert hub.fetch_model("small-reg", options) == folder
    with pytest.warns(UserWarning, match="dinov2-with-registers-small"):
        assert hub.fetch_model("facebook/dinov2_with_registers-small", options) == folder


def test_a_local_folder_named_like_a_hub_id_wins(online, options, tmp_path, monkeypatch, formats):
    """No request is made."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(formats / "noreg" / "hf", tmp_path / "facebook" / "dinov2-base")
    assert hub.fetch_model("facebook/dinov2-base", options) == Path("facebook/dinov2-base")
    assert online.requests == []


def test_shards_are_downloaded(online, options, tmp_path):
    """A repository with an index gives all its shards."""
    source = online.root / NAME
    tensors = files.read(source).tensors
    names = sorted(tensors)
    (source / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        files.write_safetensors(source / shard, {name: tensors[name] for name in part})
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    write_json(source / "model.safetensors.index.json", index)
    assert set(files.read(hub.fetch_model(NAME, options)).tensors) == set(names)


@pytest.mark.parametrize("name", ["dinov2_vitb14_regg", "no-such-thing", "a/b/c"])
def test_unknown_names_are_refused_with_a_suggestion(name, options):
    """Without asking the hub."""
    with pytest.raises(UnknownModelError, match="no model") as caught:
        hub.fetch_model(name, options)
    if name.startswith("dinov2_vitb14"):
        assert "Did you mean dinov2_vitb14_reg?" in str(caught.value)


def test_a_repository_that_is_not_there_is_named_with_a_suggestion(online, options):
    """404 of the repository, of the revision, of the file."""
    with pytest.raises(UnknownModelError, match="Did you mean facebook/dinov2-with-registers-base"):
        hub.fetch_model("facebook/dinov2-with-register-base", options)
    with pytest.raises(UnknownModelError, match="no revision 'v9'"):
        hub.fetch_model(f"{NAME}@v9", options)
    with pytest.raises(MissingFileError, match=r"no file nothing\.txt"):
        hub.fetch(NAME, "nothing.txt", options)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("status:429", "HF_TOKEN"), ("status:503", "try again"), ("gated", "private or is gated"), ("hang", "no answer")],
)
def test_a_hub_that_refuses_is_said_within_five_seconds(online, options, fault, message):
    """Status, cause and way out; no patient retries."""
    online.fault = fault
    start = time.monotonic()
    with pytest.raises(HubError, match=message):
        hub.fetch_model(NAME, options)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("endpoint", ["refused", "unresolvable"])
def test_an_unreachable_hub_is_said_within_five_seconds(monkeypatch, options, endpoint):
    """With the cache's place and the three ways out."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}" if endpoint == "refused" else "http://no-such-host.invalid"
    monkeypatch.setenv("HF_ENDPOINT", url)
    start = time.monotonic()
    with pytest.raises(HubError) as caught:
        hub.fetch_model(NAME, options)
    assert time.monotonic() - start < 5
    for part in ("cannot reach " + url, "not in the cache", "hf download " + NAME, "HF_ENDPOINT", "dinokit demo"):
        assert part in str(caught.value)


def test_switched_off_network_is_said_at_once(options):
    """`HF_HUB_OFFLINE` (set for this suite) and `local_files_only`."""
    with pytest.raises(HubError, match="switched off"):
        hub.fetch_model(NAME, options)


def test_a_truncated_download_is_not_used(online, options, monkeypatch):
    """What the client got in half is not in the cache afterwards."""
    hub.fetch(NAME, "config.json", options)
    online.fault = "truncate"
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own retries
    with pytest.raises(HubError, match="download failed"):
        hub.fetch(NAME, "model.safetensors", options)
    online.fault = ""
    assert files.read(hub.fetch_model(NAME, options)).tensors


def test_meta_s_files_are_kept_where_torch_hub_keeps_them(online, formats, tmp_path, monkeypatch):
    """Downloaded whole with a checked sum, or not at all."""
    source = formats / "reg" / "dinov2_tiny14_reg4_pretrain.pth"
    shutil.copy(source, online.root / source.name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    url = f"{online.url}/dinov2/{source.name}"
    good = (file_sha256(source),)
    with pytest.raises(HubError, match="sha256"):
        hub.fetch_url(url, ("0" * 64,))
    assert list((tmp_path / "torch").rglob("*.pth")) == []
    path = hub.fetch_url(url, good)
    assert path.parent == tmp_path / "torch" / "hub" / "checkpoints"
    assert path.read_bytes() == source.read_bytes()
    path.write_bytes(b"x")
    with pytest.raises(WeightsError, match="Delete it"):
        hub.fetch_url(url, good)
    path.unlink()
    online.fault = "truncate"
    with pytest.raises((HubError, StorageError), match=r"broke off|got"):
        hub.fetch_url(url, good)
    assert list((tmp_path / "torch").rglob("*")) == [path.parent.parent, path.parent]


def test_every_release_has_its_names():
    """Eight networks; hub ids, Meta's names, timm's, Birder's three."""
    assert len(zoo.RELEASES) == 8
    for release in zoo.RELEASES:
        for name in (release.hub_id, release.classifier_id, release.meta, release.timm, f"timm/{release.timm}"):
            assert zoo.lookup(name).release is release
    assert zoo.lookup("dinov2_vitg14_reg").url.endswith("dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth")
    assert zoo.head_url(zoo.lookup("dinov2_vits14").release, 4).endswith("dinov2_vits14/dinov2_vits14_linear4_head.pth")
    assert zoo.lookup("vit_reg4_l14_nps_ls_dino_v2_lvd142m").filename == "vit_reg4_l14_nps_ls_dino-v2-lvd142m.pt"
