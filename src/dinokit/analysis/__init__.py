"""What tokens hold: pure functions, tensors in and tensors out, that work on any ViT's tokens."""
