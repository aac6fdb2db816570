# SPDX-License-Identifier: MIT
"""What the objectives share, and the parameters that they learn."""
