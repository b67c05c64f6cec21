"""The concept bank: a folder with a manifest and one stock LoRA file a concept."""

from .bank import Bank, NewConcept
from .manifest import BaseIdentity, Concept, Manifest

__all__ = ["Bank", "BaseIdentity", "Concept", "Manifest", "NewConcept"]
