"""Which of these photographs look alike? Embeddings of a few images and their cosine similarities.

python examples/embed_and_compare.py cat.jpg photos/*.jpg [--model NAME_OR_PATH]
"""

import argparse

import dinokit

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("images", nargs="+")
parser.add_argument("--model", default="facebook/dinov2-with-registers-small")
arguments = parser.parse_args()

pre = dinokit.load(arguments.model)
features = pre(arguments.images).pool("cls+mean")
features = features / features.norm(dim=1, keepdim=True)
for path, row in zip(arguments.images, features @ features.T, strict=True):
    print(f"{path:<30}", "  ".join(f"{value:.3f}" for value in row.tolist()))
