"""The parts of the reproduction of the Hamiltonian VAE's Gaussian model."""
