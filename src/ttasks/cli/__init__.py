"""The ``ttasks`` command."""


def main() -> None:
    """Run the command; what it needs is imported here, not when the package is."""
    import warnings

    from ttasks.cli.app import command
    from ttasks.cli.streams import unbreakable

    warnings.formatwarning = _in_words
    with unbreakable():
        command()


def _in_words(message: Warning | str, *_: object, **__: object) -> str:
    """Return a warning as the command says everything, without the place in its source."""
    return f"ttasks: {message}\n"
