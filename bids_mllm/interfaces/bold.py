"""Node that brings the BOLD of one participant in one space to a matrix."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bids_mllm.io.bold import prepare_runs, save_mask
from bids_mllm.io.design import read_design
from bids_mllm.io.files import atomic_path, write_json


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
        series, good, mask, affine, names = prepare_runs(
            runs, strategy=self.inputs.confounds, high_pass=self.inputs.high_pass
        )
        with atomic_path(folder / "series.npy") as scratch:
            np.save(scratch, series)
        save_mask(folder / "mask.nii.gz", mask, affine)
        usable = mask.copy()
        usable[mask] = good
        save_mask(folder / "usable.nii.gz", usable, affine)
        info = {
            "series": str(folder / "series.npy"),
            "sha256": hashlib.sha256(np.ascontiguousarray(series).data).hexdigest(),
            "mask": str(folder / "mask.nii.gz"),
            "usable": str(folder / "usable.nii.gz"),
            "n_voxels": int(mask.sum()),
            "n_set_aside": int((~good).sum()),
            "confounds": list(names),
        }
        write_json(folder / "bold.json", info)
        self._results["info"] = str(folder / "bold.json")
        return runtime
