# SPDX-License-Identifier: MIT
"""Tensors in, tensors out: what the array files are built on."""
