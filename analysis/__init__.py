"""What a replay means: figures, intervals and judgements from plain Polars frames."""
