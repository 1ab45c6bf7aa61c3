"""One small tree of one-sentence errors; each says what, which value, what was expected, what to do."""


class BidsMllmError(Exception):
    """Any error that the app raises on purpose; its text is one clear sentence."""

    exit_status = 1


class UsageError(BidsMllmError):
    """A value on the command line or in a settings file that cannot be used."""

    exit_status = 2


class PackageError(UsageError):
    """A model that needs a package which is not installed."""


class InputDataError(BidsMllmError):
    """The data set cannot be processed as asked; found while the workflow is built."""

    exit_status = 70


class StimulusError(InputDataError):
    """A film, sound or feature table that is missing, corrupt or lacks what a model needs."""


class CheckpointError(InputDataError):
    """A model's files that are missing, incomplete or of another family."""


class DesignError(InputDataError):
    """Too few runs or samples for the cross-validation asked for."""


class StoreError(BidsMllmError):
    """The feature store cannot be read or written."""


class WorkerKilledError(BidsMllmError):
    """A worker process was ended by a signal, most often for want of memory."""


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM. No error: nothing that catches errors may keep it from ending."""

    exit_status = 143

    def __init__(self) -> None:
        super().__init__(self.exit_status)
