"""PCA of patches: signs, foreground, scaling, reuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dinokit.analysis.pca import PatchPCA
from dinokit.errors import StorageError, WeightsError

GRID, TOP, LEFT, BOTTOM, RIGHT = 8, 3, 2, 7, 5  # the object of the table of LOST's closed forms: 12 of 64 patches


def planted(cosine: float = 0.0, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit features of an object on a background, their cosine given, and where the object is."""
    mask = torch.zeros(GRID, GRID, dtype=torch.bool)
    mask[TOP:BOTTOM, LEFT:RIGHT] = True
    background = torch.eye(16)[0]
    thing = cosine * background + (1 - cosine**2) ** 0.5 * torch.eye(16)[1]
    features = torch.where(mask[..., None], thing, background)
    features = features + noise * torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
    return features.permute(2, 0, 1), mask


def flipping(monkeypatch: pytest.MonkeyPatch, signs: Tensor) -> None:
    """Let eigh return other signs, as another library may."""
    original = torch.linalg.eigh

    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = original(matrix)
        return values, vectors * signs[: len(values)].to(vectors)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)


@pytest.mark.parametrize("cosine", [0.3, 0.0, -0.3])
@pytest.mark.parametrize("threshold", [None, 0.0])
@pytest.mark.parametrize("seed", range(4))
def test_v3_foreground_is_the_object_whichever_sign_the_solver_returns(monkeypatch, cosine, threshold, seed):
    """V3: the mask of the joint PCA is the planted object, never its complement."""
    flipping(monkeypatch, torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1)
    maps, masks = zip(*(planted(cosine, 0.01, k) for k in range(3)), strict=True)
    basis = PatchPCA.fit(maps, foreground=True, threshold=threshold)
    for features, mask in zip(maps, masks, strict=True):
        assert torch.equal(basis.foreground(features), mask)
        assert (basis.transform(features)[~mask] == 0).all()


def test_colours_do_not_depend_on_the_signs_of_the_solver(monkeypatch):
    """Random features, every component, with and without foreground: the same picture."""
    torch.manual_seed(0)
    maps = [torch.randn(16, 6, 9), torch.randn(16, 4, 4)]
    for foreground in (False, True):
        expected = PatchPCA.fit(maps, foreground=foreground).transform(maps[0])
        with monkeypatch.context() as patched:
            flipping(patched, -torch.ones(64))
            assert torch.equal(PatchPCA.fit(maps, foreground=foreground).transform(maps[0]), expected)


def test_components_are_those_of_a_singular_value_decomposition():
    """Orthonormal, in falling order of variance, equal to NumPy's up to sign; scores are centred."""
    torch.manual_seed(1)
    features = torch.randn(10, 12, 12) * torch.arange(1, 11)[:, None, None]
    basis = PatchPCA.fit([features])
    rows = features.flatten(1).T.double().numpy()
    _, singular, right = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    assert np.abs(np.abs(basis.components.numpy() @ right[:3].T) - np.eye(3)).max() < 1e-5
    assert basis.shares.numpy() == pytest.approx((singular**2 / (singular**2).sum())[:3], rel=1e-5)
    assert basis.scores(features).mean(dim=(1, 2)).abs().max() < 1e-4


@pytest.mark.parametrize("spectrum", ["decaying", "flat", "two directions", "equal pairs"])
def test_wide_features_have_the_components_of_the_full_decomposition(spectrum):
    """As wide as ViT-S: the quick route for three of 384 components agrees with NumPy's eigenvalues for all of them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 384, generator=generator, dtype=torch.float64)
    if spectrum == "decaying":
        rows = rows * torch.logspace(0, -2, 384, dtype=torch.float64)
    elif spectrum == "two directions":
        rows = rows[:, :2] @ rows[:2]
    elif spectrum == "equal pairs":
        q = torch.linalg.qr(rows - rows.mean(dim=0)).Q
        rows = q * torch.tensor([9.0, 9.0, 5.0, 5.0] + [1.0] * 380, dtype=torch.float64)
    features = rows.T.reshape(384, 20, 30)
    basis = PatchPCA.fit([features])
    centred = (rows - rows.mean(dim=0)).numpy()
    values = np.linalg.eigvalsh(centred.T @ centred)
    shares = values[::-1][:3] / values.clip(0).sum()
    assert basis.shares.numpy() == pytest.approx(shares * (shares > 1e-9), rel=1e-5, abs=1e-12)
    found = basis.components.double().numpy()
    found = found[(found != 0).any(axis=1)]
    assert np.abs(found @ found.T - np.eye(len(found))).max() < 1e-6
    images = centred.T @ (centred @ found.T)  # eigenvectors keep their direction, whichever of equal ones were chosen
    assert np.abs(images - found.T * values[::-1][: len(found)]).max() <= 1e-6 * values[-1]


def test_a_basis_is_joint_and_gives_other_images_the_same_colours(tmp_path):
    """One patch has one colour in every image, after saving and loading too, bit for bit."""
    torch.manual_seed(2)
    first, second = torch.randn(8, 5, 5), torch.randn(8, 5, 7)
    second[:, 2, 3] = first[:, 1, 1]
    basis = PatchPCA.fit([first, second], foreground=False)
    assert torch.equal(basis.transform(first)[1, 1], basis.transform(second)[2, 3])
    again = PatchPCA.load(basis.save(tmp_path / "basis.npz"))
    assert torch.equal(again.transform(second), basis.transform(second))
    assert list(tmp_path.iterdir()) == [tmp_path / "basis.npz"]


def test_scalings_map_what_they_say_to_black_and_full():
    """Smallest and largest; first and 99th percentile; three standard deviations."""
    torch.manual_seed(3)
    features = torch.randn(6, 20, 20)
    colours = PatchPCA.fit([features], scaling="minmax").transform(features)
    assert colours.amin((0, 1)).tolist() == [0, 0, 0]
    assert colours.amax((0, 1)).tolist() == pytest.approx([1, 1, 1])
    clipped = PatchPCA.fit([features]).transform(features)
    assert ((clipped == 0) | (clipped == 1)).float().mean().item() == pytest.approx(0.02, abs=0.005)
    basis = PatchPCA.fit([features], scaling="sigma")
    deviations = basis.scores(features).std(dim=(1, 2), correction=0)
    assert torch.allclose(basis.high, 3 * deviations, rtol=1e-4)
    assert torch.equal(basis.low, -basis.high)


def test_features_without_variance_are_grey():
    """A constant map, and a map that varies along one direction only: no colour is made of rounding noise."""
    assert (PatchPCA.fit([torch.ones(8, 4, 4)]).transform(torch.ones(8, 4, 4)) == 0.5).all()
    line = torch.linspace(0, 1, 16).view(1, 4, 4) * torch.ones(8, 1, 1)
    basis = PatchPCA.fit([line])
    assert (basis.transform(line)[..., 1:] == 0.5).all()
    assert basis.shares.tolist() == pytest.approx([1, 0, 0])


def test_outliers_can_be_left_out_of_the_fit():
    """An outlier with 40 times the norm takes over the first component, unless `keep` leaves it out."""
    features, mask = planted(0.0, 0.01)
    features[:, 0, 0] = 40 * torch.eye(16)[7]
    keep = torch.ones_like(mask)
    keep[0, 0] = False
    assert not torch.equal(PatchPCA.fit([features], foreground=True, threshold=0.0).foreground(features), mask)
    found = PatchPCA.fit([features], foreground=True, keep=[keep]).foreground(features)
    assert torch.equal(found | ~keep, mask | ~keep)


def test_misuse_is_said(tmp_path):
    """No maps, other widths, NaN, unknown scaling, no foreground, files that are no basis."""
    good = torch.randn(8, 4, 4)
    for maps, message in (([], "none"), ([good, torch.randn(9, 4, 4)], "one width"), ([good * torch.nan], "not finite"),
                          ([torch.randn(8, 1, 1)], "two or more")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            PatchPCA.fit(maps)
    with pytest.raises(ValueError, match="scaling"):
        PatchPCA.fit([good], scaling="loud")
    with pytest.raises(ValueError, match="no foreground"):
        PatchPCA.fit([good], foreground=True, threshold=1e9)
    with pytest.raises(ValueError, match="masks"):
        PatchPCA.fit([good], keep=[])
    basis = PatchPCA.fit([good])
    with pytest.raises(ValueError, match="another network"):
        basis.transform(torch.randn(9, 4, 4))
    with pytest.raises(ValueError, match="not finite"):
        basis.transform(good * torch.inf)
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("text.npz", "other.npz", "missing.npz"):
        with pytest.raises(WeightsError, match="no PCA basis"):
            PatchPCA.load(tmp_path / name)
    with pytest.raises(StorageError):
        basis.save(tmp_path / "no" / "basis.npz")
