"""What the folder of a run holds, by name; for whoever reads one without training."""

from __future__ import annotations

# Weights, an epoch a file; curves of loss and the like; facts, written last; the state to go on by.
CHECKPOINTS, CURVES, FACTS, STATE = "checkpoints", "curves", "training.json", "state.pt"
