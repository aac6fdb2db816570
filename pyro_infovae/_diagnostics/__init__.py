# SPDX-License-Identifier: MIT
"""The questions of `diagnostics`, one a file."""
