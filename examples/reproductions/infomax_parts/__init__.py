"""The parts of `infomax_vae.py`."""

import info_vaes as info_vaes  # finds the demo's package
