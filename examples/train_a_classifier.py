"""A linear classifier on frozen features, trained on folders of images (one folder a class), saved so that transformers opens it.

python examples/train_a_classifier.py DATA_FOLDER OUT_FOLDER [--model NAME_OR_PATH]
"""

import argparse
from pathlib import Path

import torch

import dinokit
from dinokit.extract import list_images

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--model", default="facebook/dinov2-with-registers-small")
parser.add_argument("--steps", type=int, default=200)
arguments = parser.parse_args()

classes = sorted(folder.name for folder in arguments.data.iterdir() if folder.is_dir())
samples = [(path, label) for label, name in enumerate(classes) for path in list_images([arguments.data / name])]
model = dinokit.AutoModelForImageClassification.from_pretrained(
    arguments.model, num_labels=len(classes), id2label=dict(enumerate(classes))
)
processor = dinokit.AutoImageProcessor.from_pretrained(arguments.model)
pixels = processor([dinokit.decode(path).image for path, _ in samples], return_tensors="pt").pixel_values
labels = torch.tensor([label for _, label in samples])

model.requires_grad_(False)
model.classifier.requires_grad_(True)
optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-2)
torch.manual_seed(0)
for _ in range(arguments.steps):
    loss = model(pixels, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    accuracy = (model(pixels).logits.argmax(-1) == labels).float().mean().item()
model.save_pretrained(arguments.out)
processor.save_pretrained(arguments.out)
print(f"{arguments.out}: {len(classes)} classes, loss {loss.item():.4f}, training accuracy {accuracy:.2f}")
