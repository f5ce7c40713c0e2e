"""Reading pickles of plain data without running any code."""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ksm.errors import KsmError


def read_plain(data: bytes) -> Any:
    """Read a pickle of numpy arrays and built-in values (dicts, lists, tuples, sets, bytes, text,
    numbers, None).

    Text that Python 2 wrote becomes bytes.

    Raises:
        KsmError: the pickle is damaged, or asks for any other class or function; none is called.
    """
    try:
        return _PlainOnly(io.BytesIO(data), encoding="bytes").load()
    except KsmError:
        raise
    except Exception as error:  # a damaged pickle raises errors of every kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KsmError(f"damaged pickle: {reason}") from None


class _PlainOnly(pickle.Unpickler):
    """Finds the names that numpy arrays need, and no others: those could run any code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        match (module_name, global_name):
            case ("numpy", "ndarray"):
                return np.ndarray
            case ("numpy", "dtype"):
                return np.dtype
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return _reconstruct
            case _:
                raise KsmError(
                    f"pickle asks for {module_name}.{global_name}, which is no array: not read"
                )


def _reconstruct(kind: type[NDArray[Any]], shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
    return np.ndarray.__new__(kind, shape, dtype=np.dtype(code.decode("ascii")))
