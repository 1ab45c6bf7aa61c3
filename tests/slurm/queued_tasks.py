"""Print how many tasks of a job bin/slurm-array takes for queued. usage: queued_tasks.py SLURM_ARRAY JOB"""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader

loader = SourceFileLoader("slurm_array", sys.argv[1])
slurm_array = importlib.util.module_from_spec(importlib.util.spec_from_loader("slurm_array", loader))
sys.dont_write_bytecode = True
loader.exec_module(slurm_array)
states = slurm_array.slurm_states([sys.argv[2]])
sys.stdout.write(f"{sum(state == 'PENDING' for state, _ in states.values())}\n")
