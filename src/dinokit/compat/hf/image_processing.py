"""`BitImageProcessor` and `AutoImageProcessor`: the image processor of the DINOv2 models, by the documented API.

Promise: pixel for pixel what transformers 5.23's Pillow backend gives; files that transformers opens and the other way round.
Source: transformers' documentation of BitImageProcessor (v4.34); where 5.23 differs, the choice is noted here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinokit.atomic import write_atomically
from dinokit.compat.hf.batch_feature import BatchFeature
from dinokit.compat.hf.image_arrays import FIRST, LAST, Steps, flat_list
from dinokit.errors import OutputError
from dinokit.weights.files import read_json
from dinokit.weights.hub import HubOptions, fetch

FILE_NAME = "preprocessor_config.json"
ACCEPTED_TYPES = ("BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil")
BICUBIC = 3
OPENAI_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
SIZE_KEYS = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"longest_edge"},
    {"max_height", "max_width"},
)
# Names of the class that transformers adds to its files, and that say nothing about pixels.
DROPPED_KEYS = ("feature_extractor_type", "processor_class", "image_processor_type")

Size = int | Sequence[int] | Mapping[str, int]


def size_dict(size: Size, name: str = "size", square: bool = True) -> dict[str, int]:
    """A size as a dictionary: a number is both sides if `square`, else the shortest edge; a pair is height, width.

    Raises:
        ValueError: keys or values that name no size.
    """
    if isinstance(size, int):
        found = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif isinstance(size, list | tuple) and len(size) == 2:
        found = {"height": size[0], "width": size[1]}
    elif isinstance(size, Mapping):
        found = dict(size)
    else:
        raise ValueError(f"{name} is {size!r}; give a number, (height, width), or a dictionary.")
    if set(found) not in SIZE_KEYS:
        known = "; ".join(", ".join(sorted(keys)) for keys in SIZE_KEYS)
        raise ValueError(f"{name} must have one of these sets of keys: {known}. Got {', '.join(map(str, found))}.")
    for value in found.values():
        if not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(f"{name} is {found}; its values must be whole numbers of pixels.")
    return found


class BitImageProcessor:
    """RGB, resize, centre crop, rescale, normalise.

    The defaults are the documented ones (shortest edge 224, CLIP's mean and deviation); those of DINOv2 stand in the
    models' `preprocessor_config.json`. Further keywords become attributes and survive saving.

    Transparency is composited over white and EXIF orientation is not looked at, as in transformers 5.23; `dinokit.load` and
    `dinokit.images` decide otherwise (see their documentation).
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        do_resize: bool = True,
        size: Size | None = None,
        resample: int = BICUBIC,
        do_center_crop: bool = True,
        crop_size: Size | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_convert_rgb: bool = True,
        **kwargs: Any,
    ) -> None:
        self.do_resize = do_resize
        self.size = size_dict({"shortest_edge": 224} if size is None else size, "size", square=False)
        self.resample = resample
        self.do_center_crop = do_center_crop
        self.crop_size = size_dict(224 if crop_size is None else crop_size, "crop_size")
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = copy.copy(OPENAI_CLIP_MEAN if image_mean is None else image_mean)
        self.image_std = copy.copy(OPENAI_CLIP_STD if image_std is None else image_std)
        self.do_convert_rgb = do_convert_rgb
        for name, value in kwargs.items():
            if name not in DROPPED_KEYS:
                setattr(self, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: Size | None = None,
        resample: int | None = None,
        do_center_crop: bool | None = None,
        crop_size: Size | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_convert_rgb: bool | None = None,
        return_tensors: str | None = None,
        data_format: str | None = FIRST,
        input_data_format: str | None = None,
    ) -> BatchFeature:
        """Images as `pixel_values`; an argument that is None takes the processor's own value.

        `images`: PIL images of any mode; arrays or tensors h w c or c h w (2-d ones are refused), alone, batched (4-d), or in
        lists, nested or mixed. Values in 0 to 255; for floats in 0 to 1 set `do_rescale=False`. Where either end of a shape
        could be the channels, the first is taken; `input_data_format` ("channels_first", "channels_last") says otherwise.
        `data_format` "channels_last" gives h w c out (as documented; transformers 5.23 ignores it). `return_tensors` is
        "pt", "np", or None for a list of arrays.

        Raises:
            ValueError: what is no image, values that can't be 8 bits, a step without its numbers, images of different sizes
                to be stacked.
        """
        size = self.size if size is None else size_dict(size, "size", square=False)
        resample = self.resample if resample is None else resample
        crop_size = self.crop_size if crop_size is None else size_dict(crop_size, "crop_size")
        factor = self.rescale_factor if rescale_factor is None else rescale_factor
        mean = self.image_mean if image_mean is None else image_mean
        std = self.image_std if image_std is None else image_std
        resizes = _needs("do_resize", _or(do_resize, self.do_resize), resample=resample)
        crops = _needs("do_center_crop", _or(do_center_crop, self.do_center_crop), crop_size=_sides(crop_size))
        rescales = _needs("do_rescale", _or(do_rescale, self.do_rescale), rescale_factor=factor)
        normalizes = _needs("do_normalize", _or(do_normalize, self.do_normalize), image_mean=mean, image_std=std)
        steps = Steps(
            to_rgb=_or(do_convert_rgb, self.do_convert_rgb),
            resize=(size, int(resample)) if resizes else None,
            crop=_sides(crop_size) if crops else None,
            rescale=factor if rescales else None,
            normalize=(mean, std) if normalizes else None,
        )
        layout_out, layout_in = _layout("data_format", data_format), _layout("input_data_format", input_data_format)
        ready = [steps.apply(image, layout_in) for image in flat_list(images)]
        if layout_out == LAST:
            ready = [np.moveaxis(values, 0, -1) for values in ready]
        return BatchFeature({"pixel_values": ready}, return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """All settings, unknown ones included, ready for JSON."""
        values = {name: _plain(value) for name, value in copy.deepcopy(vars(self)).items()}
        values["image_processor_type"] = "BitImageProcessor"
        return values

    def to_json_string(self) -> str:
        """`to_dict` as it is written to files."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the settings to a file, which appears whole or not at all."""
        text = self.to_json_string().encode()
        write_atomically(json_file_path, lambda file: file.write(text))

    def save_pretrained(self, save_directory: str | Path) -> list[str]:
        """Write `preprocessor_config.json` into a folder, made if missing; the path written, in a list.

        Raises:
            OutputError: the path is a file, or can't be written.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; save_pretrained needs a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / FILE_NAME)
        return [str(folder / FILE_NAME)]

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """A processor of these settings; keywords override those of the same name.

        With `return_unused_kwargs=True`: a pair of the processor and the keywords that name no setting.
        """
        give_unused = kwargs.pop("return_unused_kwargs", False)
        processor = cls(**dict(image_processor_dict))
        used = {name: kwargs.pop(name) for name in list(kwargs) if hasattr(processor, name)}
        if used:
            processor = cls(**{**image_processor_dict, **used})
        return (processor, kwargs) if give_unused else processor

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> BitImageProcessor:
        """A processor of the settings in a file."""
        return cls(**read_json(Path(json_file)))

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings in a file, a folder or a hub repository, and the keywords that were not about finding them.

        Raises:
            OSError: no such model, or no such file in it, or the hub can't be reached.
        """
        path = Path(pretrained_model_name_or_path)
        options = HubOptions(
            revision=kwargs.pop("revision", None),
            cache_dir=kwargs.pop("cache_dir", None),
            local_files_only=kwargs.pop("local_files_only", False),
            token=kwargs.pop("token", None),
            force_download=kwargs.pop("force_download", False),
        )
        subfolder = kwargs.pop("subfolder", "")
        if not path.is_file():
            path = fetch(pretrained_model_name_or_path, f"{subfolder}/{FILE_NAME}" if subfolder else FILE_NAME, options)
        return read_json(path), kwargs

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The processor of a model: hub name, folder, or JSON file.

        Keywords about finding it: `revision`, `cache_dir`, `local_files_only`, `token`, `force_download`, `subfolder`; the
        others override settings. `return_unused_kwargs` as in `from_dict`.

        Raises:
            OSError: it can't be found.
        """
        settings, rest = cls.get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        return cls.from_dict(settings, **rest)


class AutoImageProcessor:
    """Picks the image processor that a model's files ask for; DINOv2 models ask for BitImageProcessor."""

    def __init__(self) -> None:
        raise OSError("AutoImageProcessor is made with AutoImageProcessor.from_pretrained(name_or_path).")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """As `BitImageProcessor.from_pretrained`; `use_fast` and `backend` are accepted, there being one implementation.

        Raises:
            ValueError: the files ask for another image processor.
            OSError: they can't be found.
        """
        for choice in ("use_fast", "backend", "trust_remote_code"):
            kwargs.pop(choice, None)
        settings, rest = BitImageProcessor.get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        kind = settings.get("image_processor_type")
        if kind is None:
            kind = str(settings.get("feature_extractor_type", "none")).replace("FeatureExtractor", "ImageProcessor")
        if kind not in ACCEPTED_TYPES:
            raise ValueError(
                f"{pretrained_model_name_or_path} asks for the image processor {kind!r}; dinokit has {ACCEPTED_TYPES[0]}, "
                f"which DINOv2 models use (also written {', '.join(ACCEPTED_TYPES[1:])})."
            )
        return BitImageProcessor.from_dict(settings, **rest)


def _or(given: bool | None, own: bool) -> bool:
    return own if given is None else given


def _needs(step: str, done: bool, **numbers: object) -> bool:
    """Whether a step is done; its numbers must be there then."""
    for name, value in numbers.items():
        if done and value is None:
            raise ValueError(f"`{name}` must be specified if `{step}` is True.")
    return done


def _sides(size: Mapping[str, int]) -> tuple[int, int] | None:
    return (int(size["height"]), int(size["width"])) if set(size) == {"height", "width"} else None


def _layout(name: str, value: str | None) -> str | None:
    layout = getattr(value, "value", value)
    if layout not in (None, FIRST, LAST):
        raise ValueError(f"{name} is {layout!r}; it must be {FIRST!r} or {LAST!r}.")
    return layout


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    # Pillow's filters are an enumeration of whole numbers.
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
