"""Composition: from a bank's concepts to one patch."""
