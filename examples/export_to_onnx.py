"""A network as an ONNX file for one image size, checked in onnxruntime. Needs: pip install "dinokit[onnx]" onnxruntime

python examples/export_to_onnx.py model.onnx [--size 224] [--model NAME_OR_PATH]
"""

import argparse

import numpy as np
import onnxruntime
import torch

import dinokit
from dinokit.model.export import export_onnx

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("out")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--model", default="facebook/dinov2-with-registers-small")
arguments = parser.parse_args()

pre = dinokit.load(arguments.model)
export_onnx(pre.model, arguments.out, (arguments.size, arguments.size))
images = torch.randn(2, 3, arguments.size, arguments.size)
session = onnxruntime.InferenceSession(arguments.out, providers=["CPUExecutionProvider"])
(found,) = session.run(["tokens"], {"images": images.numpy()})
with torch.no_grad():
    error = np.abs(found - pre.model(images).sequence.numpy()).max()
print(f"{arguments.out}: tokens {found.shape}, max difference to PyTorch {error:.1e}")
