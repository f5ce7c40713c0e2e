"""Kernel-wise soft masks: one frozen image backbone, a small task file for each new task.

The public names are in `__init__.pyi`. Each is imported at its first use: `import ksm` by itself
imports no torch.
"""

import lazy_loader

from ksm._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
