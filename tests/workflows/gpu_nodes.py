"""Nodes that record where and when they ran; a module of its own, which workers import fast."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits


class _In(BaseInterfaceInputSpec):
    folder = traits.Str(mandatory=True)
    name = traits.Str(mandatory=True)
    does = traits.Enum("sleep", "fail", "die", "linger", "wait")
    seconds = traits.Float(0.5, usedefault=True)
    device = traits.Str("cuda", usedefault=True, nohash=True)
    use_gpu = traits.Bool(True, usedefault=True, nohash=True)


class _Out(TraitedSpec):
    device = traits.Str()


class Occupy(SimpleInterface):
    """Records its device, when it had it, and who else was there; then fails or kills its process, if it is to."""

    input_spec = _In
    output_spec = _Out

    def _run_interface(self, runtime):
        record = Path(self.inputs.folder) / f"{self.inputs.name}.json"
        row = {"device": self.inputs.device, "pid": os.getpid(), "beside": self._beside(), "begin": time.time()}
        record.write_text(json.dumps(row))
        try:
            self._occupy()
        except BaseException:
            if self.inputs.does == "linger":
                time.sleep(6)  # longer than a new worker takes to start
            raise
        if self.inputs.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        record.write_text(json.dumps(row | {"end": time.time()}))
        if self.inputs.does == "fail":
            raise ValueError("as asked")
        self._results["device"] = self.inputs.device
        return runtime

    def _occupy(self):
        """Hold the device for some seconds; a node that waits holds it until so many others have ended."""
        if self.inputs.does != "wait":
            time.sleep(self.inputs.seconds)
            return
        while sum("end" in row for row in records(Path(self.inputs.folder)).values()) < self.inputs.seconds:
            time.sleep(0.05)

    def _beside(self):
        """Names of nodes that are on the device now, by records without an end and processes that live."""
        others = records(Path(self.inputs.folder)).items()
        return [
            name
            for name, row in others
            if "end" not in row
            and row["device"] == self.inputs.device
            and row["pid"] != os.getpid()
            and alive(row["pid"])
        ]


def records(folder):
    return {path.stem: _read(path) for path in folder.glob("*.json")}


def _read(path):
    try:
        return json.loads(path.read_text())
    except ValueError:
        return {"device": "", "pid": os.getpid()}  # it is being written


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
