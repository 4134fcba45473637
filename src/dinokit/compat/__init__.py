"""Faces of other libraries, thin: names translated in, a call, names translated out."""
