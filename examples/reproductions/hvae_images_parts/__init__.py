"""The parts of the reproduction of the Hamiltonian VAE's images."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # the demo's, whose reader of IDX files serves here
