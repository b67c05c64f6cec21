"""Reference images, their prompts, and both encoded for a training run."""
