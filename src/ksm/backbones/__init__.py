"""Pretrained networks to learn tasks on."""

from ksm.backbones.describe import Description, describe, fingerprint, new_head
from ksm.backbones.names import DEFAULT, backbone
from ksm.backbones.packaged import PACKAGED

__all__ = [
    "DEFAULT",
    "PACKAGED",
    "Description",
    "backbone",
    "describe",
    "fingerprint",
    "new_head",
]
