"""What the code carries where the decoder does not need it: a point per seed."""

import csv
from pathlib import Path

import matplotlib.pyplot as plt

with Path("../collapse/table.csv").open(encoding="utf-8") as file:  # Sphinx runs it here
    rows = list(csv.DictReader(file))

figure, panels = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for axes, name, heading in zip(
    panels, ("kl", "information"), ("KL(q(z|x) ‖ p(z)), nats", "I(x; z), nats"), strict=True
):
    axes.scatter([float(row[name]) for row in rows], [row["objective"] for row in rows], alpha=0.7)
    axes.set(xlabel=heading, xlim=(-0.2, None))
    axes.grid(axis="y", alpha=0.3)
panels[0].invert_yaxis()
