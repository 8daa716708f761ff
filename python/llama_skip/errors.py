"""Exceptions of llama_skip that are not Python's own, and what every part of it shares."""

MIB = 1024 * 1024


class ModelLoadError(RuntimeError):
    """A model could not be loaded; the text ends with llama.cpp's last error lines."""


def message(err: Exception) -> str:
    """Return what a person is told of an error."""
    if isinstance(err, OSError) and err.filename is not None:
        return f"{err.filename}: {err.strerror}"
    return str(err) or type(err).__name__
