# SPDX-License-Identifier: MIT
"""Arrays in, arrays out: what the array files are built on."""
