"""Simulate the data set of the tests on Slurm: three participants, four short films. usage: small_study.py FOLDER"""

import sys
from pathlib import Path

from bids_mllm.simulate.dataset import simulate_dataset

simulate_dataset(Path(sys.argv[1]), run_seconds=60.0, runs={"bourne": 2, "wolf": 1, "life": 1}, seed=1)
