"""Base models: loading them, their layers, adapters on these, and sampling."""
