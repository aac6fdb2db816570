"""What the reproductions of InfoVAE and InfoMax-VAE share; it finds the demo's package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
