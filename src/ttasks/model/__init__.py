"""The nouns that users hold: thin, thread-safe handles over states."""
