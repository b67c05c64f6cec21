"""SeqLoRA: concepts learned one after another in orthogonal, learned LoRA subspaces (arXiv 2605.22743).

Data flows one way: images -> latents -> training -> bank -> composition -> patch.  Importing this package
imports nothing heavy; take what you need from its packages (`model`, `training`, `bank`, `composition`, ...).
"""

__version__ = "0.1.0"
