"""The numbered migrations of the ledger's schema: one SQL file each, applied in order, each in one transaction.

A file is never edited once released; a change of the schema is a new file. `PRAGMA user_version` holds the number of
the newest one applied.
"""
