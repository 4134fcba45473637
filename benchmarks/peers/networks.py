"""Random networks in the forms that each engine reads, the images they are run on, and the reference in float64.

Biases, layer scales and norms are random too, so that no engine can leave them out; everything is seeded and kept between runs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import common
import numpy as np
import torch

from dinokit.config import VARIANTS, ViTConfig
from dinokit.images import ImageTransform
from dinokit.model import VisionTransformer
from dinokit.weights.load import Pretrained, Provenance, load
from dinokit.weights.save import save

SEED = 20240606
# For trying a benchmark out; its figures mean nothing.
TINY = ViTConfig(embed_dim=64, depth=2, num_heads=2, ffn_dim=256, num_register_tokens=4, image_size=(224, 224))
CONFIGS = {"tiny": TINY, **VARIANTS}
# The reference is computed for so many images of a batch; a pass in float64 takes twice the time.
REFERENCE_IMAGES = 2


def random_network(config: ViTConfig) -> VisionTransformer:
    """Weights that keep the size of activations from block to block, and nothing that is zero or one."""
    generator = torch.Generator().manual_seed(SEED)
    model = VisionTransformer(config)

    def normal(parameter: torch.Tensor, std: float, mean: float = 0.0) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                normal(parameter, 0.05, 0.3)
            elif "norm" in name and name.endswith("weight"):
                normal(parameter, 0.1, 1.0)
            elif parameter.ndim > 1 and ".weight" in name:
                normal(parameter, parameter[0].numel() ** -0.5)
            else:
                normal(parameter, 0.1)
    return model.eval()


def folder(variant: str, work: Path) -> Path:
    """The network as transformers keeps it; dinokit reads the same files."""
    path = work / variant
    if not (path / "config.json").is_file():
        common.say(f"making {variant} ...")
        network = Pretrained(
            model=random_network(CONFIGS[variant]),
            transform=ImageTransform.dinov2(),
            provenance=Provenance(name=variant, path=path, files=(), layout="official"),
        )
        save(network, path, "hf", overwrite=True)
    return path


def timm_file(variant: str, work: Path) -> Path:
    """The same network as timm names it."""
    path = work / f"{variant}.timm.safetensors"
    return path if path.is_file() else save(load(folder(variant, work)), path, "timm")


def onnx_file(variant: str, size: int, work: Path) -> Path:
    """The same network as ONNX, its positions baked in for `size`."""
    path = work / f"{variant}-{size}.onnx"
    if not path.is_file():
        from dinokit.model.export import export_onnx

        common.say(f"exporting {variant} at {size} px ...")
        export_onnx(load(folder(variant, work)).model, path, (size, size))
    return path


def int8_onnx_file(variant: str, size: int, work: Path) -> Path:
    """The same, its matrices quantised as onnxruntime does it: 8-bit weights a channel, activations quantised as they come."""
    path = work / f"{variant}-{size}-int8.onnx"
    if not path.is_file():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from dinokit.engine import look

        quantize_dynamic(
            onnx_file(variant, size, work),
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=not look().vnni,
            weight_type=QuantType.QInt8,
        )
    return path


def images(batch: int, size: int) -> np.ndarray:
    """Normalised noise; the first images are the same in a batch of any size."""
    rng = np.random.default_rng(SEED)
    return np.stack([rng.standard_normal((3, size, size), dtype=np.float32) for _ in range(batch)])


def reference_file(variant: str, size: int, work: Path) -> Path:
    """Tokens of the first images by transformers in float64."""
    path = work / f"{variant}-{size}.npy"
    if not path.is_file():
        from transformers import AutoModel

        common.say(f"reference of {variant} at {size} px in float64 ...")
        model = AutoModel.from_pretrained(folder(variant, work), dtype=torch.float64).eval()
        with torch.inference_mode():
            tokens = [
                model(torch.from_numpy(image[None]).double()).last_hidden_state
                for image in images(REFERENCE_IMAGES, size)
            ]
        np.save(path, torch.cat(tokens).numpy())
    return path


def errors(tokens: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Largest absolute difference of a value, and smallest cosine of a token."""
    a, b = tokens.astype(np.float64), reference[: len(tokens)]
    cosines = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return {"max_error": float(np.abs(a - b).max()), "min_cosine": float(cosines.min())}


MAKERS = {"onnx": onnx_file, "int8": int8_onnx_file, "reference": reference_file}


def make(variant: str, size: int, work: Path, wanted: list[str]) -> None:
    """Make what is missing, in a process of its own, so that its memory is gone afterwards."""
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "peers.networks", variant, str(size), str(work), *wanted]
    subprocess.run(command, cwd=common.HERE, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    _variant, _size, _work, *_wanted = sys.argv[1:]
    folder(_variant, Path(_work))
    for _name in _wanted:
        MAKERS[_name](_variant, int(_size), Path(_work))
