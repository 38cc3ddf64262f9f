"""Collections of tasks and graphs over a ledger."""
