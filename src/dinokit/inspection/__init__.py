"""Tools that look at a loaded model: images in, findings out."""
