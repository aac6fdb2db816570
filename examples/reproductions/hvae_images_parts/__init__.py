"""The parts of the reproduction of the Hamiltonian VAE's images."""

import reproduction as reproduction  # which finds the demo, whose reader of IDX files serves
