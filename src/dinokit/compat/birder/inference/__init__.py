"""Inference with Birder's nets, under Birder's module names."""
