"""Quiet loading and saving: transformers draws progress bars and tables, which a log file should not hold."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch the progress bars of transformers off, and back on afterwards where they were on."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch off progress bars and the table of weights that a model does not use, such as those of a head.

    Missing weights are not left to that table: who loads a model checks them.
    """
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with no_progress_bars():
            yield
    finally:
        logging.set_verbosity(level)
