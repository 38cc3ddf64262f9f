"""The version of ttasks, in the one place that pyproject.toml and the ledger take it from."""

__version__ = "0.1.0"
