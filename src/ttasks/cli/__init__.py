"""The ``ttasks`` command."""


def main() -> None:
    """Run the command; what it needs is imported here, not when the package is."""
    from ttasks.cli.app import command
    from ttasks.cli.streams import unbreakable

    with unbreakable():
        command()
