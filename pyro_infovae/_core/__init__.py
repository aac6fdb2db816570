# SPDX-License-Identifier: MIT
"""What needs no framework, once for both halves: neither torch nor JAX is imported here."""
