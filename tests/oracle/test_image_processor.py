"""`BitImageProcessor` against transformers 5.23's Pillow backend: equal, not close."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor as TheirAuto
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil as Theirs

from dinokit.compat.hf.batch_feature import BatchFeature
from dinokit.compat.hf.image_processing import AutoImageProcessor, BitImageProcessor
from dinokit.images import ImageTransform

DINOV2 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8).astype(dtype)


def pil(mode: str, height: int = 37, width: int = 53) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(noise(height, width).astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(noise(height, width)).convert(mode)
    return Image.fromarray(noise(height, width, 4)[..., :3]).convert("RGBA" if mode == "La" else mode)


def with_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(noise(31, 45, 4), "RGBA")
    return image.convert("LA") if mode == "LA" else image


def palette(transparency: int | bytes) -> Image.Image:
    image = pil("P")
    image.info["transparency"] = transparency
    return image


A = noise(40, 60, 3)
UNIT = np.random.default_rng(1).random((40, 60, 3))
SMALL = {"size": {"shortest_edge": 32}, "crop_size": 28}
AS_IS: dict[str, Any] = {"do_resize": False, "do_center_crop": False}

# name: (images, keywords of the call)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"pil {mode}": (pil(mode), SMALL) for mode in ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "I;16", "I", "F")},
    "pil RGBA": (with_alpha("RGBA"), SMALL),
    "pil LA": (with_alpha("LA"), SMALL),
    "pil P with a transparent colour": (palette(7), SMALL),
    "pil P with an opacity for each colour": (palette(bytes(range(256))), SMALL),
    "pil L unconverted, unnormalised": (pil("L"), {**SMALL, "do_convert_rgb": False, "do_normalize": False}),
    "pil RGBA unconverted, unnormalised": (
        with_alpha("RGBA"),
        {**SMALL, "do_convert_rgb": False, "do_normalize": False},
    ),
    "pil LA unconverted, unnormalised": (with_alpha("LA"), {**SMALL, "do_convert_rgb": False, "do_normalize": False}),
    "pil 1 unconverted, unnormalised": (pil("1"), {**SMALL, "do_convert_rgb": False, "do_normalize": False}),
    "pil L unconverted, one mean": (pil("L"), {**SMALL, "do_convert_rgb": False, "image_mean": 0.4, "image_std": 0.3}),
    **{
        f"size {height} x {width}": (noise(height, width, 3), {})
        for height, width in [
            (1, 1),
            (1, 5),
            (224, 224),
            (256, 256),
            (257, 301),
            (480, 640),
            (640, 479),
            (900, 250),
            (7, 500),
        ]
    },
    "2000 x 1": (Image.fromarray(noise(1, 2000, 3)), SMALL),
    "1 x 2000": (Image.fromarray(noise(2000, 1, 3)), SMALL),
    "hwc uint8": (A, {}),
    "chw uint8": (A.transpose(2, 0, 1), {}),
    "hw1": (noise(40, 60, 1), SMALL),
    "1hw": (noise(1, 40, 60), SMALL),
    "hw4": (noise(40, 60, 4), SMALL),
    "4hw": (noise(4, 40, 60), SMALL),
    "hw4 of floats": (np.random.default_rng(2).random((40, 60, 4)), SMALL),
    "floats of whole numbers": (A.astype(np.float32), SMALL),
    "int64": (A.astype(np.int64), SMALL),
    "uint16 within 8 bits": (A.astype(np.uint16), SMALL),
    "bool": (A > 100, SMALL),
    "float64 in 0 to 1": (UNIT, {**SMALL, "do_rescale": False}),
    "float32 in 0 to 1, scaled twice": (UNIT.astype(np.float32), SMALL),
    "float16 in 0 to 1": (UNIT.astype(np.float16), {**SMALL, "do_rescale": False}),
    "float16 kept": (UNIT.astype(np.float16), {**AS_IS, "do_rescale": False}),
    "floats of any range, not resized": (UNIT * 700 - 300, AS_IS),
    "non-contiguous": (A[::-1, ::2], SMALL),
    "torch chw": (torch.from_numpy(A).permute(2, 0, 1), SMALL),
    "torch floats": (torch.from_numpy(UNIT).float(), {**SMALL, "do_rescale": False}),
    "batch of 4 dimensions": (np.stack([A, A[::-1]]), SMALL),
    "torch batch": (torch.from_numpy(np.stack([A, A])).permute(0, 3, 1, 2), SMALL),
    "list": ([A, A[:20]], SMALL),
    "tuple": ((A, A), SMALL),
    "list of batches": ([A[None], A[None, ::-1]], SMALL),
    "nested lists": ([[A, A[:30]], [A]], SMALL),
    "mixed types and modes": ([pil("L"), A, torch.from_numpy(A), with_alpha("RGBA"), A.transpose(2, 0, 1)], SMALL),
    "3 x 3 x 3": (noise(3, 3, 3), SMALL),
    "3 x 3 x 3, channels last": (noise(3, 3, 3), {**SMALL, "input_data_format": "channels_last"}),
    "3 x 50 x 3, channels first": (noise(3, 50, 3), {**SMALL, "input_data_format": "channels_first"}),
    "no resize": (A, {"do_resize": False, "crop_size": 30}),
    "no crop": (A, {"do_center_crop": False, "size": {"shortest_edge": 32}}),
    "no rescale": (A, {**SMALL, "do_rescale": False}),
    "no normalise": (A, {**SMALL, "do_normalize": False}),
    "8 bits out": (A, {**SMALL, "do_rescale": False, "do_normalize": False}),
    "nothing done": (A, {**AS_IS, "do_rescale": False, "do_normalize": False}),
    "other factor": (A, {**SMALL, "rescale_factor": 1 / 127.5}),
    "other mean": (A, {**SMALL, "image_mean": (0.1, 0.2, 0.3), "image_std": [0.5, 0.6, 0.7]}),
    "size as a number": (A, {"size": 50, "crop_size": 40}),
    "size of both sides": (A, {"size": {"height": 30, "width": 91}, "do_center_crop": False}),
    "size as a pair": (A, {"size": (33, 44), "crop_size": (20, 31)}),
    "size with a longest edge": (A, {"size": {"shortest_edge": 50, "longest_edge": 60}, "do_center_crop": False}),
    "size with a loose longest edge": (
        A,
        {"size": {"shortest_edge": 50, "longest_edge": 600}, "do_center_crop": False},
    ),
    "size of at most": (A, {"size": {"max_height": 20, "max_width": 50}, "do_center_crop": False}),
    "padding, odd": (noise(21, 30, 3), {"do_resize": False, "crop_size": {"height": 40, "width": 41}}),
    "padding in one direction": (noise(21, 70, 3), {"do_resize": False, "crop_size": {"height": 40, "width": 41}}),
    "padding after a resize": (A, {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 24}}),
    **{f"filter {number}": (A, {**SMALL, "resample": number}) for number in range(6)},
    **{f"{kind} out": ([A, A], {**SMALL, "return_tensors": kind}) for kind in ("pt", "np")},
    "different sizes in a list": ([A, A[:20]], AS_IS),
}


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    ours, theirs = (list(value) if isinstance(value, list) else [value] for value in (ours, theirs))
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert tuple(mine.shape) == tuple(other.shape)
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_pixels_equal_transformers(name: str) -> None:
    """Every kind of input gives the numbers that transformers gives, to the last bit."""
    images, keywords = CASES[name]
    assert_same(BitImageProcessor()(images, **keywords)["pixel_values"], Theirs()(images, **keywords)["pixel_values"])


def test_at_least_forty_odd_inputs_are_compared() -> None:
    """The table above is not cut down unnoticed."""
    assert len(CASES) >= 40


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (200, 100), (1, 300), (1000, 260)])
def test_image_transform_equals_transformers(size: tuple[int, int]) -> None:
    """The transform that dinokit uses and the processor of the published models give one tensor."""
    image = Image.fromarray(noise(*size, 3))
    theirs = Theirs(**{key: value for key, value in DINOV2.items() if key != "image_processor_type"})
    for transform in (ImageTransform.from_hf(DINOV2), ImageTransform.dinov2()):
        assert_same(transform(image)[None], theirs(image, return_tensors="pt")["pixel_values"])


REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "2-d array": (A[..., 0], {}),
    "5-d array": (np.zeros((2, 2, 3, 4, 4), np.uint8), {}),
    "two channels": (noise(9, 9, 2), {}),
    "path": ("photo.jpg", {}),
    "number": (3, {}),
    "None": (None, {}),
    "list with None": ([A, None], {}),
    "empty list": ([], {}),
    "empty nested list": ([[]], {}),
    "uint16 beyond 8 bits": (A.astype(np.uint16) * 200, {}),
    "negative floats": (A.astype(np.float32) - 300, {}),
    "NaN": (np.full((9, 9, 3), np.nan), {}),
    "RGBA floats beyond 1": (noise(9, 9, 4, dtype=np.float32), {}),
    "unknown size": (A, {"size": {"edge": 3}}),
    "only the longest edge": (A, {"size": {"longest_edge": 30}}),
    "size that is no number": (A, {"size": "large"}),
    "size in halves": (A, {"size": {"shortest_edge": 22.5}}),
    "crop by shortest edge": (A, {"crop_size": {"shortest_edge": 22}}),
    "unknown filter": (A, {"resample": 99}),
    "two means": (A, {"image_mean": [0.5, 0.5]}),
    "three means for one channel": (pil("L"), {"do_convert_rgb": False}),
    "unknown tensors": (A, {"return_tensors": "tf"}),
    "different sizes to stack": ([A, A[:20]], {**AS_IS, "return_tensors": "pt"}),
    "unknown layout in": (A, {"input_data_format": "hwc"}),
    "unknown layout out": (A, {"data_format": "hwc"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_or_no_setting_is_a_value_error(name: str) -> None:
    """Wrong input is refused with the documented kind of error."""
    images, keywords = REFUSED[name]
    with pytest.raises(ValueError):
        BitImageProcessor()(images, **keywords)


@pytest.mark.parametrize("setting", ["resample", "rescale_factor", "image_mean"])
def test_a_step_without_its_number_is_a_value_error(setting: str) -> None:
    """A processor whose file leaves a needed number out says so."""
    processor = BitImageProcessor()
    setattr(processor, setting, None)
    with pytest.raises(ValueError, match=setting):
        processor(A)


def test_channels_last_comes_out_as_documented() -> None:
    """`data_format="channels_last"` turns the axes; transformers 5.23 ignores it."""
    usual = BitImageProcessor()(A, return_tensors="np")["pixel_values"]
    turned = BitImageProcessor()(A, return_tensors="np", data_format="channels_last")["pixel_values"]
    np.testing.assert_array_equal(turned, usual.transpose(0, 2, 3, 1))


def test_arguments_may_be_given_by_place_as_documented() -> None:
    """The order of `preprocess` is that of the documents."""
    by_place = BitImageProcessor().preprocess(A, True, {"shortest_edge": 32}, 2, True, 30)
    by_name = BitImageProcessor().preprocess(A, size={"shortest_edge": 32}, resample=2, crop_size=30)
    assert_same(by_place["pixel_values"], by_name["pixel_values"])


def test_a_strip_of_two_million_to_one_costs_no_memory() -> None:
    """A 20000 x 1 image, which resized whole would be 5120000 x 256, is done at once."""
    for size in ((1, 20000), (60000, 1)):
        assert BitImageProcessor(**DINOV2)(Image.new("RGB", size[::-1]))["pixel_values"][0].shape == (3, 224, 224)


def test_defaults_are_written_as_transformers_writes_them() -> None:
    """The JSON of a fresh processor is, byte for byte, the one that transformers writes."""
    assert BitImageProcessor().to_json_string() == Theirs().to_json_string()


@pytest.mark.parametrize("kind", ["BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil"])
def test_files_open_in_both_libraries(tmp_path: Path, kind: str) -> None:
    """A file is read by either library as the other wrote it, unknown keys included."""
    settings = {**DINOV2, "image_processor_type": kind, "from_the_future": {"a": [1, 2]}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    ours = AutoImageProcessor.from_pretrained(tmp_path)
    assert ours.from_the_future == {"a": [1, 2]}
    again = tmp_path / "again"
    assert ours.save_pretrained(again) == [str(again / "preprocessor_config.json")]
    theirs = TheirAuto.from_pretrained(again)
    assert (
        json.loads(theirs.to_json_string())
        == ours.to_dict()
        == {**settings, "image_processor_type": "BitImageProcessor"}
    )
    assert_same(ours(A)["pixel_values"], theirs(A)["pixel_values"])


def test_settings_can_be_overridden_when_loading(tmp_path: Path) -> None:
    """Keywords of `from_pretrained` that name settings win; the others come back if asked for."""
    BitImageProcessor().save_pretrained(tmp_path)
    processor, rest = BitImageProcessor.from_pretrained(
        tmp_path, do_resize=False, size=90, other=1, return_unused_kwargs=True
    )
    assert (processor.do_resize, processor.size, rest) == (False, {"shortest_edge": 90}, {"other": 1})
    from_file = BitImageProcessor.from_pretrained(tmp_path / "preprocessor_config.json")
    assert from_file.to_dict() == BitImageProcessor().to_dict()
    assert BitImageProcessor.from_json_file(tmp_path / "preprocessor_config.json").to_dict() == from_file.to_dict()


def test_a_subfolder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    """`subfolder` is looked into, and a folder without the file is an OSError that names it."""
    BitImageProcessor(size=77).save_pretrained(tmp_path / "deep")
    assert AutoImageProcessor.from_pretrained(tmp_path, subfolder="deep").size == {"shortest_edge": 77}
    with pytest.raises(OSError, match="preprocessor_config"):
        AutoImageProcessor.from_pretrained(tmp_path)


def test_another_image_processor_is_refused_by_name(tmp_path: Path) -> None:
    """A model that asks for some other processor is not run through this one."""
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    with pytest.raises(ValueError, match="ViTImageProcessor"):
        AutoImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="from_pretrained"):
        AutoImageProcessor()


def test_saving_onto_a_file_is_refused(tmp_path: Path) -> None:
    """`save_pretrained` needs a folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="folder"):
        BitImageProcessor().save_pretrained(tmp_path / "file")


def test_batch_feature_behaves_like_a_dictionary_with_attributes() -> None:
    """Results unpack with `**`, answer to attributes, and `.to` casts only floating point tensors."""
    batch = BatchFeature({"pixel_values": [np.zeros((3, 2, 2), np.float32)], "labels": [np.int64(3)]}, "pt")
    assert dict(**batch).keys() == {"pixel_values", "labels"}
    assert batch.pixel_values is batch["pixel_values"] is batch.data["pixel_values"]
    assert batch.to(torch.float16) is batch
    assert (batch.pixel_values.dtype, batch.labels.dtype) == (torch.float16, torch.int64)
    assert batch.to("meta").labels.device.type == "meta"
    with pytest.raises(AttributeError, match="pixel_values"):
        _ = batch.nothing
    with pytest.raises(ValueError, match="device"):
        batch.to(3.5)
    assert isinstance(pickle.loads(pickle.dumps(BatchFeature({"a": 1}))), BatchFeature)
