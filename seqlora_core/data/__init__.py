"""Reference images, their prompts, and both encoded: what a training run takes."""
