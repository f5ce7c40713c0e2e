"""The methods: a file each, and the registry that finds them and those from outside."""

from ksm.methods._method import Grow, Method, Outcome, Phase
from ksm.methods.registry import make, method_class, register_method

__all__ = ["Grow", "Method", "Outcome", "Phase", "make", "method_class", "register_method"]
