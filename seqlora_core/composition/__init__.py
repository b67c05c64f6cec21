"""Compose concepts of a bank into one patch."""
