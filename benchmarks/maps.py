"""Time the brain maps of a participant at 2 mm: their figures with tables, beside the same views by nilearn alone.

usage: python benchmarks/maps.py [--quick]

The participant has scores of 235,375 voxels of several models. The app gathers the maps on disk, writes the table of
each figure, reads it back and draws it as SVG and PNG. nilearn draws the same views of as many maps from memory: a
glass brain of those that are thresholded, slices, and fsaverage5 inflated from four sides and flat. The last line is
one JSON object: figures, the median seconds a figure of both, their ratio, and the peak memory of the app in megabytes.
With --quick there is one model and one turn.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))

from bids_mllm.io.derivatives import MapName, write_map  # noqa: E402
from bids_mllm.io.grids import VolumeGrid  # noqa: E402
from bids_mllm.io.results import ModelResult  # noqa: E402
from tests.workflows.group_outputs import facts_of  # noqa: E402

CONDITIONS, LAYERS = [f"generated{number}" for number in range(13)], list(range(30))
SIDES = (("left", "lateral"), ("left", "medial"), ("right", "medial"), ("right", "lateral"))


def write_participant(folder: Path, n_models: int) -> list[ModelResult]:
    """Write what figures of maps are made from, with numbers at random."""
    import nilearn.datasets

    mask = nilearn.datasets.load_mni152_brain_mask(resolution=2)
    inside = np.asarray(mask.dataobj).ravel() > 0
    grid = VolumeGrid(mask.shape, mask.affine)
    name = MapName("01", "life", "MNI152NLin2009cAsym", "2", None, None, ".nii.gz")
    rng = np.random.default_rng(0)
    results = [ModelResult(name, f"model{number}", folder) for number in range(n_models)]
    for result in results:
        facts = {**facts_of(result.model), "Conditions": CONDITIONS, "Layers": LAYERS}
        scores = rng.normal(0.05, 0.1, inside.sum())
        maps = {("r", "best"): scores, ("q", "best"): np.where(scores > 0.15, 0.01, 0.5)}
        maps |= {("bestlayer", None): rng.integers(0, 30, scores.size), ("bestcondition", None): scores * 0 + 3}
        for (stat, desc), values in maps.items():
            write_map(result.path(stat, desc), values.astype(np.float32), inside, grid, facts)
    return results


def by_app(folder: Path, n_models: int) -> dict[str, Any]:
    """Draw every figure of the participant; return how many there are, and whether each has a glass brain."""
    from bids_mllm.workflows.brain_figures import brain_figures
    from bids_mllm.workflows.figures import write_figures

    results = write_participant(folder, n_models)
    begin = time.perf_counter()
    figures = brain_figures(folder, results)
    write_figures(folder / "sub-01" / "figures", figures, output_dir=folder)
    seconds = time.perf_counter() - begin
    glass = ["glass" in data.options["Views"] for data in figures]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds / len(figures), "glass": glass, "megabytes": peak}


def by_nilearn(folder: Path, glass: list[bool]) -> float:
    """Draw the same views of as many maps; return the seconds a map."""
    import nibabel as nib
    from matplotlib import pyplot
    from nilearn import datasets, plotting, surface

    (result,) = write_participant(folder, 1)
    image = nib.load(result.path("r", "best"))
    begin = time.perf_counter()
    meshes = datasets.fetch_surf_fsaverage("fsaverage5")
    for number, with_glass in enumerate(glass):
        drawn = []
        if with_glass:
            drawn.append(plotting.plot_glass_brain(image, display_mode="lyrz", threshold=0.15).frame_axes.figure)
        drawn.append(plotting.plot_stat_map(image, display_mode="z", cut_coords=7).frame_axes.figure)
        for side, view in SIDES:
            values = surface.vol_to_surf(image, meshes[f"pial_{side}"])
            drawn.append(plotting.plot_surf_stat_map(meshes[f"infl_{side}"], values, hemi=side, view=view))
        for side in ("left", "right"):
            values = surface.vol_to_surf(image, meshes[f"pial_{side}"])
            drawn.append(plotting.plot_surf_stat_map(meshes[f"flat_{side}"], values, hemi=side, view="dorsal"))
        for part, figure in enumerate(drawn):
            for extension in ("svg", "png"):
                figure.savefig(folder / f"{number}-{part}.{extension}", dpi=150)
        pyplot.close("all")
    return (time.perf_counter() - begin) / len(glass)


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process and a new folder, so that neither side has what the other one loaded."""
    with tempfile.TemporaryDirectory() as name, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (Path(name), *arguments))


def main() -> None:
    """Let both draw in turn and tell how long a figure took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one model and one turn instead of three of each")
    options = parser.parse_args()
    n_models, n_turns = (1, 1) if options.quick else (3, 3)
    app, rival = [], []
    for _ in range(n_turns):
        app.append(_apart(by_app, n_models))
        rival.append(_apart(by_nilearn, app[0]["glass"]))
    seconds = {
        "app": float(np.median([turn["seconds"] for turn in app])),
        "nilearn": float(np.median(rival)),
    }
    found = {f"{name}_seconds_a_figure": round(value, 3) for name, value in seconds.items()}
    ratio = round(seconds["nilearn"] / seconds["app"], 2)
    peak = round(max(turn["megabytes"] for turn in app))
    print(json.dumps({"figures": len(app[0]["glass"]), **found, "nilearn_over_app": ratio, "app_megabytes": peak}))


if __name__ == "__main__":
    main()
