"""Numerical kernels: the readable float64 definitions (:mod:`streamssm.kernels.reference`)
that every other implementation is measured against. Importing this imports nothing heavy."""
