"""Exceptions of llama_skip that are not Python's own, and what every part of it shares."""

MIB = 1024 * 1024


class ModelLoadError(RuntimeError):
    """A model could not be loaded; the text ends with llama.cpp's last error lines."""


class ArgumentError(ValueError):
    """An argument that is refused before anything is loaded.

    Attributes:
        name: of the argument, as in Python; a command says its flag instead.
        text: what is wrong with it.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name, self.text = name, text

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def at_least(least: float, **values: float) -> None:
    """Raise ArgumentError where one of the arguments is below `least`."""
    for name, value in values.items():
        if not value >= least:
            raise ArgumentError(name, f"{value} is too small, the least is {least}")


def message(err: Exception) -> str:
    """Return what a person is told of an error."""
    if isinstance(err, OSError) and err.filename is not None:
        return f"{err.filename}: {err.strerror}"
    return str(err) or type(err).__name__
