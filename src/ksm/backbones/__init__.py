"""Pretrained networks to learn tasks on."""

from ksm.backbones.names import DEFAULT, backbone, is_reference

__all__ = ["DEFAULT", "backbone", "is_reference"]
