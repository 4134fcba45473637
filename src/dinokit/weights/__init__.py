"""Checkpoints: reading and writing files, names of layouts, conversion, and `load`, where model, images and files meet."""
