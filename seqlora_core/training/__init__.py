"""The training of one concept."""
