"""What runs: the executor, the graph runner, and the one place from which the ledger is told."""
