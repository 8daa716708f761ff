"""Exceptions of llama_skip that are not Python's own."""


class ModelLoadError(RuntimeError):
    """A model could not be loaded; the text ends with llama.cpp's last error lines."""
