"""The concept bank: a folder with a manifest and one stock LoRA file a concept."""

from ..model.architecture import BaseIdentity
from .bank import Bank, NewConcept
from .manifest import Concept, Manifest

__all__ = ["Bank", "BaseIdentity", "Concept", "Manifest", "NewConcept"]
