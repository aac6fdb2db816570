"""Objectives side by side with those of other libraries, at the same budget of gradients."""
