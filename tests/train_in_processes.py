"""Train a toy in as many processes as torchrun started; not a test itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from test_training import CONFIG, make_data, make_model, train

from clip_mixtures.training.processes import join_processes, leave_processes

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    processes = join_processes()
    model = make_model()
    facts = train(model, make_data(model), CONFIG, 0, folder, processes)
    if processes.is_first:
        (folder / "facts.json").write_text(json.dumps(facts))
    leave_processes(processes)
