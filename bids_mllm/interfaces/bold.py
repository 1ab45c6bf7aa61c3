"""Node that brings the BOLD of one participant in one space to a matrix."""

import hashlib
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bids_mllm.io.bold import prepare_runs
from bids_mllm.io.design import read_design
from bids_mllm.io.files import write_json
from bids_mllm.io.maps import map_extension, save_map


class _PrepareInputSpec(BaseInterfaceInputSpec):
    design = File(exists=True, mandatory=True, desc="JSON of a ParticipantDesign")
    signatures = traits.Str(mandatory=True, desc="sizes and times of the files, so that changed ones run again")
    confounds = traits.Str(mandatory=True, desc="name of the strategy")
    high_pass = traits.Float(mandatory=True, desc="Hz")
    app_version = traits.Str(mandatory=True)


class _PrepareOutputSpec(TraitedSpec):
    info = File(exists=True, desc="JSON: digest and paths of series and masks, confound names, voxel counts")


class PrepareBold(SimpleInterface):
    """Mask and clean every run of a participant in one space."""

    input_spec = _PrepareInputSpec
    output_spec = _PrepareOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        folder = Path(runtime.cwd)
        runs = read_design(Path(self.inputs.design)).runs
        series = folder / "series.npy"
        prepared = prepare_runs(runs, series, strategy=self.inputs.confounds, high_pass=self.inputs.high_pass)
        extension = map_extension(prepared.grid)
        files = {name: folder / f"{name}_hemi-L_mask{extension}" for name in ("mask", "usable")}
        save_map(files["mask"], prepared.mask, prepared.grid)
        save_map(files["usable"], prepared.usable, prepared.grid)
        n_places = int(prepared.mask.sum())
        info = {
            "series": str(series),
            "sha256": _digest(series),
            **{name: str(path) for name, path in files.items()},
            "n_voxels": n_places,
            "n_set_aside": n_places - int(prepared.usable.sum()),
            "confounds": list(prepared.confounds),
        }
        write_json(folder / "bold.json", info)
        self._results["info"] = str(folder / "bold.json")
        return runtime


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
