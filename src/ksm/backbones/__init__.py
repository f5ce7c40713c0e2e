"""Pretrained networks to learn tasks on."""

from ksm.backbones.describe import Description, describe, fingerprint, new_head
from ksm.backbones.names import DEFAULT, backbone, is_reference
from ksm.backbones.packaged import PACKAGED

__all__ = [
    "DEFAULT",
    "PACKAGED",
    "Description",
    "backbone",
    "describe",
    "fingerprint",
    "is_reference",
    "new_head",
]
