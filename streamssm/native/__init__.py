"""Native kernels: the shared library beside this package, and what of a model runs on it.

``STREAMSSM_KERNELS=off`` switches them off: the plain-ONNX bodies in the file run then.
``STREAMSSM_KERNELS=unfused`` keeps one node for each operator.
"""

from streamssm.native.library import Kernels, Library, Loan, choose

__all__ = ["Kernels", "Library", "Loan", "choose"]
