"""Images for self-supervised training: in which order, cropped and altered how, drawn from where."""

from dinokit.train.data.crops import CropRule
from dinokit.train.data.loader import Batches, TensorBatches, load_batches
from dinokit.train.data.photometric import Photometric
from dinokit.train.data.recipe import Augmentation
from dinokit.train.data.sampler import Order, Plan
from dinokit.train.data.sources import Images, image_files
from dinokit.train.data.views import Unreadable, Views

__all__ = [
    "Augmentation",
    "Batches",
    "CropRule",
    "Images",
    "Order",
    "Photometric",
    "Plan",
    "TensorBatches",
    "Unreadable",
    "Views",
    "image_files",
    "load_batches",
]
