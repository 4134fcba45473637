"""Self-supervised training: DINOv2's objective as functions of tensors, and the step that puts them together."""
