"""The methods: a file each, the base class that all derive from, and the registry that finds them.

What a method from another package needs is exported here.
"""

from ksm.core.clone import own_norms
from ksm.methods._layers import (
    hold_trunk,
    others,
    parametrizations,
    parametrize_weights,
    trunk,
)
from ksm.methods.base import RESERVED, Course, Grow, Method, Outcome, Phase, Tensors
from ksm.methods.registry import make, method_class, register_method

__all__ = [
    "RESERVED",
    "Course",
    "Grow",
    "Method",
    "Outcome",
    "Phase",
    "Tensors",
    "hold_trunk",
    "make",
    "method_class",
    "others",
    "own_norms",
    "parametrizations",
    "parametrize_weights",
    "register_method",
    "trunk",
]
