"""ONNX files give the model's tokens in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinokit.model.export import export_onnx
from tests.model.test_vit import make
from tests.tolerances import ORACLE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("registers", "ffn", "size"), [(4, "mlp", (56, 98)), (0, "swiglu", (70, 70))])
def test_onnx_files_run_in_onnxruntime(tiny, tmp_path, registers, ffn, size):
    """Another size than the trained one, any batch; no resize is left in the graph."""
    import onnx
    import onnxruntime

    model = make(tiny.replace(num_register_tokens=registers, ffn=ffn))
    path = export_onnx(model, tmp_path / "model.onnx", size)
    assert "Resize" not in {node.op_type for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.randn(batch, 3, *size)
        (found,) = session.run(["tokens"], {"images": images.numpy()})
        with torch.no_grad():
            expected = model(images).sequence.numpy()
        assert np.abs(found - expected).max() <= ORACLE


def test_a_model_in_training_mode_is_not_exported(tiny, tmp_path):
    """Dropout in a graph would be a silent mistake."""
    with pytest.raises(ValueError, match="training mode"):
        export_onnx(make(tiny).train(), tmp_path / "model.onnx")
