# SPDX-License-Identifier: MIT
"""A training step watched, captured and replayed."""
