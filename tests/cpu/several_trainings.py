"""Several runs on the same ranks, one after the other in one process each: `several_trainings.py RUN_DIR...`.

As `cctrain.worker RUN_DIR` does it, without the start of a process and AutoModel's import for each.
"""

import sys
from pathlib import Path

import torch

from cctrain import worker
from cctrain.processes import die_with_parent, leave_if_failed

if __name__ == "__main__":
    die_with_parent()
    for run_dir in sys.argv[1:]:
        leave_if_failed(worker.main(Path(run_dir)))
    torch.distributed.destroy_process_group()
