"""Base models: loading them, their layers, adapters on those layers, and sampling."""
