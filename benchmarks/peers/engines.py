"""The engines: how each loads the network and runs a batch. Heavy packages are imported by the one process that needs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peers import networks

# A pass over a batch: nothing in, tokens out (in whatever the engine gives; `to_numpy` knows them).
Run = Callable[[], Any]


@dataclass(frozen=True)
class Engine:
    """`peer` is the package, `how` distinguishes its forms. `kept`: freed memory stays with the process, as in dinokit's commands."""

    peer: str
    dtype: str
    how: str = ""
    kept: bool = False
    devices: tuple[str, ...] = ("cpu",)

    @property
    def label(self) -> str:
        extras = [word for word in (self.how, "kept memory" if self.kept else "") if word]
        return f"{self.peer} {self.dtype}" + (f" ({', '.join(extras)})" if extras else "")


BOTH = ("cpu", "cuda")
ENGINES: dict[str, Engine] = {
    "transformers-float32": Engine("transformers", "float32", devices=BOTH),
    "transformers-bfloat16": Engine("transformers", "bfloat16", devices=BOTH),
    "transformers-bfloat16-flash": Engine("transformers", "bfloat16", "flash", devices=("cuda",)),
    "transformers-bfloat16-compiled": Engine("transformers", "bfloat16", "compiled", devices=("cuda",)),
    "timm-float32": Engine("timm", "float32"),
    "timm-bfloat16": Engine("timm", "bfloat16", devices=("cuda",)),
    "onnxruntime-float32": Engine("onnxruntime", "float32"),
    "onnxruntime-int8": Engine("onnxruntime", "int8"),
    "openvino-float32": Engine("openvino", "float32"),
    "openvino-bfloat16": Engine("openvino", "bfloat16"),
    "dinokit-float32-eager": Engine("dinokit", "float32", "eager", devices=BOTH),
    "dinokit-float32": Engine("dinokit", "float32", devices=BOTH),
    "dinokit-float32-kept": Engine("dinokit", "float32", kept=True),
    "dinokit-bfloat16": Engine("dinokit", "bfloat16", devices=("cuda",)),
    "dinokit-bfloat16-kept": Engine("dinokit", "bfloat16", kept=True),
    "dinokit-bfloat16-compiled": Engine("dinokit", "bfloat16", "compiled", devices=("cuda",)),
    "dinokit-int16-kept": Engine("dinokit", "int16", kept=True),
    "dinokit-int8-kept": Engine("dinokit", "int8", kept=True),
    "ceiling-float32": Engine("matrix products", "float32", devices=BOTH),
    "ceiling-bfloat16": Engine("matrix products", "bfloat16", devices=BOTH),
    "ceiling-int16": Engine("matrix products", "int16"),
    "ceiling-int8": Engine("matrix products", "int8"),
}
# What runs whole networks; the ceilings are measured beside them by themselves.
WHOLE = [name for name in ENGINES if not name.startswith("ceiling-")]
BASE = "transformers-float32"


class Skipped(Exception):  # noqa: N818 - not an error: this machine lacks what the engine needs
    """An engine that can't run here, or would do what another one does, and why."""


@dataclass(frozen=True)
class Job:
    """What a worker is started for."""

    engine: str
    variant: str
    size: int
    work: str
    device: str = "cpu"
    threads: int | None = None

    @property
    def path(self) -> Path:
        return Path(self.work)


class Loaded:
    """A network in an engine: `batch(n)` gives the pass over n images; `note` says what the engine chose."""

    def __init__(self, batch: Callable[[int], Run], note: str = "") -> None:
        self.batch, self.note = batch, note


def load(job: Job) -> Loaded:
    """Load the network of a job.

    Raises:
        Skipped: it makes no sense here.
    """
    engine = ENGINES[job.engine]
    if job.device.partition(":")[0] not in engine.devices:
        raise Skipped(f"not for {job.device}")
    if engine.peer in ("timm", "onnxruntime", "openvino", "transformers") and not importlib.util.find_spec(engine.peer):
        raise Skipped(f"{engine.peer} is not installed")
    match engine.peer:
        case "transformers":
            return _transformers(job, engine)
        case "timm":
            return _timm(job, engine)
        case "onnxruntime":
            return _onnxruntime(job, engine)
        case "openvino":
            return _openvino(job, engine)
        case "matrix products":
            from peers.ceiling import ceiling

            return ceiling(job, engine)
        case _:
            return _dinokit(job, engine)


def to_numpy(tokens: Any) -> np.ndarray:
    """Tokens of any engine as an array in at least float32."""
    if isinstance(tokens, np.ndarray):
        return tokens
    return tokens.detach().float().cpu().numpy()


def _torch_batch(job: Job, dtype: Any, forward: Callable[[Any], Any]) -> Callable[[int], Run]:
    """Passes of something that takes a PyTorch tensor, waiting for a GPU to end."""
    import torch

    def batch(count: int) -> Run:
        pixels = torch.from_numpy(networks.images(count, job.size)).to(job.device, dtype)

        def run() -> Any:
            with torch.inference_mode():
                tokens = forward(pixels)
            if job.device != "cpu":
                torch.cuda.synchronize()
            return tokens

        return run

    return batch


def _transformers(job: Job, engine: Engine) -> Loaded:
    import torch
    from transformers import AutoModel

    options = {}
    if engine.how == "flash":
        if not importlib.util.find_spec("flash_attn"):
            raise Skipped("flash_attn is not installed (PyTorch's own attention already runs its kernel)")
        options = {"attn_implementation": "flash_attention_2"}
    dtype = getattr(torch, engine.dtype)
    model = AutoModel.from_pretrained(networks.folder(job.variant, job.path), dtype=dtype, **options)
    model = model.eval().to(job.device)
    note = f"{model.config._attn_implementation} attention"
    if engine.how == "compiled":
        model = torch.compile(model, mode="reduce-overhead")
    return Loaded(_torch_batch(job, dtype, lambda pixels: model(pixels).last_hidden_state), note)


def _timm(job: Job, engine: Engine) -> Loaded:
    import timm
    import torch

    config = networks.CONFIGS[job.variant]
    names = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
    if config.embed_dim not in names:
        raise Skipped("timm has no network of this size")
    name = f"vit_{names[config.embed_dim]}_patch14{'_reg4' if config.num_register_tokens else ''}_dinov2"
    file = networks.timm_file(job.variant, job.path)
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True, checkpoint_path=str(file))
    dtype = getattr(torch, engine.dtype)
    model = model.eval().to(job.device, dtype)
    return Loaded(_torch_batch(job, dtype, model.forward_features))


def _onnxruntime(job: Job, engine: Engine) -> Loaded:
    import onnxruntime

    make = networks.int8_onnx_file if engine.dtype == "int8" else networks.onnx_file
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads or 0
    # Its threads would spin on after a pass, in the time of whoever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = make(job.variant, job.size, job.path)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def batch(count: int) -> Run:
        feed = {"images": networks.images(count, job.size)}
        return lambda: session.run(["tokens"], feed)[0]

    return Loaded(batch)


def _openvino(job: Job, engine: Engine) -> Loaded:
    import openvino

    core = openvino.Core()
    if engine.dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Skipped("OpenVINO computes float32 on this CPU, which lacks the instructions")
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[engine.dtype]}
    if job.threads:
        options["INFERENCE_NUM_THREADS"] = job.threads
    model = core.read_model(networks.onnx_file(job.variant, job.size, job.path))

    def batch(count: int) -> Run:
        model.reshape([count, 3, job.size, job.size])
        compiled = core.compile_model(model, "CPU", options)
        pixels = networks.images(count, job.size)
        return lambda: compiled([pixels], share_inputs=True, share_outputs=True)[0]

    return Loaded(batch)


def _dinokit(job: Job, engine: Engine) -> Loaded:
    import torch

    from dinokit.engine import decide, keep_large_blocks, look
    from dinokit.weights.load import load as load_network

    if engine.kept:
        keep_large_blocks()
    pre = load_network(networks.folder(job.variant, job.path))
    if engine.how == "eager":
        pre.to(job.device)
        return Loaded(
            _torch_batch(job, torch.float32, lambda pixels: pre.model(pixels).sequence), "the network as it is"
        )
    fast = pre.optimize(job.device, getattr(torch, engine.dtype), compiled=engine.how == "compiled")
    del pre
    assert fast.plan is not None
    if engine.dtype != "float32" and str(fast.plan) == str(decide(look(job.device))):
        raise Skipped(f"as float32: {fast.plan.because[0]}")
    return Loaded(_torch_batch(job, fast.dtype, lambda pixels: fast.model(pixels).sequence), str(fast.plan))
