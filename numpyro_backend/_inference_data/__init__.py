# SPDX-License-Identifier: MIT
"""What `inference_data` is built on."""
