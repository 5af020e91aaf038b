"""Training of CLIP on a mixture: data, loop, checkpoints."""
