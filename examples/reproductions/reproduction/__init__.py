"""What the reproductions share: their options, runs, comparisons and pages; it finds the demo."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
