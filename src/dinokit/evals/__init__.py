"""Evaluations of features by the field's protocols: tensors or files in, a `Result` with its settings out."""
