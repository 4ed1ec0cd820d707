"""The ledgers: the DuckDB mirror, what is imported into it, and what is read from it."""
