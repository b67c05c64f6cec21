"""The concept bank: a folder with a manifest and one stock LoRA file per concept."""

from ..model.architecture import BaseIdentity
from .bank import Bank
from .manifest import Concept, Manifest, Provenance
from .new_concept import NewConcept
from .spec import ConceptSpec

__all__ = ["Bank", "BaseIdentity", "Concept", "ConceptSpec", "Manifest", "NewConcept", "Provenance"]
