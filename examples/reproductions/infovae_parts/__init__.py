"""The parts of `infovae.py`: two points, training-set sizes, and pictures of a 2-D code."""

import info_vaes as info_vaes  # finds the demo's package
