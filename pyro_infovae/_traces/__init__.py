# SPDX-License-Identifier: MIT
"""From what model and guide did to rows, forces and weights."""
