"""``python -m ttasks`` is the ``ttasks`` command."""

from ttasks.cli import main

if __name__ == "__main__":
    main()
