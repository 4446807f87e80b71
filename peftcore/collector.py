"""Python's garbage collector, held off while much is made that stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Hold Python's garbage collector off while much is made that all stays: it would walk all there is, repeatedly."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                # Straight to the oldest generation, where they will be anyway, without a walk over all that is new.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
