"""What the reproductions of InfoVAE and InfoMax-VAE share."""

import reproduction as reproduction  # which finds the demo's package
