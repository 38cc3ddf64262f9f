"""GitHub Copilot: prompt and agent tasks, run by its SDK and CLI, with all that they do recorded."""
