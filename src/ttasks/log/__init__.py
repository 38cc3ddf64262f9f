"""The event log on SQLite: the only room that writes, and the rows that are folded from it."""
