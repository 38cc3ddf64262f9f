"""Doubles of what Copilot tasks talk to: a model's server for the real CLI, and a fake of the CLI for the real SDK.

The folder is not called `copilot`, because the tests' folder comes first on the import path, and would hide the SDK.
"""
