"""The regression gate: committed scenarios are replayed and held against the decisions a person once accepted."""
