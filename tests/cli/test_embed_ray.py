"""`dinokit embed --engine ray`: what is refused before anything starts, and what an actor is told."""

from __future__ import annotations

import pickle
import sys

import pytest

import dinokit.extract.on_ray as on_ray
from dinokit.cli.main import _run as main
from dinokit.errors import EXIT_USAGE
from dinokit.extract.on_ray import Actors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--engine", "ray"], "--engine ray needs --out FOLDER"),
        (["--engine", "ray", "-o", "one.npz"], "--engine ray needs --out FOLDER"),
        (["--actors", "2", "-o", "one.npz"], "--actors needs --out FOLDER"),
        (["--actors", "2", "-o", "folder"], "--actors needs --engine ray"),
        (["--engine", "ray", "-o", "folder", "--rank", "1", "--world-size", "2"], "leave --rank and --world-size out"),
    ],
)
def test_what_does_not_go_with_ray_is_refused(arguments, expected, tmp_path, monkeypatch, capsys):
    """With the usage code and a sentence; nothing is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert main(["embed", "photos", *arguments]) == EXIT_USAGE
    assert expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


class AskedError(Exception):
    pass


def test_the_job_travels_to_the_actors(tmp_path, monkeypatch):
    """As something that can be pickled, lists from files included; the network's form inside is the fastest."""
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    found = {}

    def caught(make_job, out, actors, **_):
        found.update(job=pickle.loads(pickle.dumps(make_job)), out=out, actors=actors)
        raise AskedError

    monkeypatch.setattr(on_ray, "run_on_ray", caught)
    with pytest.raises(AskedError):
        main(["embed", "--files-from", "list.txt", "-o", "folder", "--engine", "ray", "--actors", "3"])
    assert found["actors"] == Actors(count=3)
    _, given, options = found["job"].args
    assert (given["engine"], options.files) == ("auto", ("a.png", "b.png"))


def test_without_ray_the_way_out_is_named(tmp_path, monkeypatch, capsys):
    """The extra that brings it; no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["embed", "photos", "-o", "folder", "--engine", "ray"]) == EXIT_USAGE
    assert "dinokit[ray]" in capsys.readouterr().err
