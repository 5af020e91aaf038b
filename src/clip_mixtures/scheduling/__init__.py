"""Cells side by side on one machine, and as tasks of a SLURM cluster."""
