"""The conformance kit: what a method promises, as tests that its author inherits.

A plugin's test is a few lines; everything else is inherited::

    from peftcore.testing import LayerMethodTests

    class TestC3A(LayerMethodTests):
        method = "c3a"
        configs = ({"block_size": 2}, {"block_size": 4})

Each check runs on every kind of layer that the method supports and with every config, in a model of a few hundred
numbers; a failure says what differs, by how much, and what the cause may be.
The checks use the public API alone, so they say what a user of the method would see.

Slow checks carry the mark ``slow``: register it, and leave them out by ``-m 'not slow'``.
Needs ``pip install peftcore[testing]``.
"""

try:
    import pytest
except ImportError as error:
    raise ImportError("peftcore.testing needs pytest: pip install peftcore[testing]") from error

#: The modules with checks; registered before they are imported, so that their assertions show what they are about.
_CHECKS = tuple(
    [
        "basis",
        "packaging",
        "configs",
        "training",
        "forward",
        "merging",
        "composition",
        "files",
        "lifecycle",
        "parity",
        "prompts",
    ]
)
pytest.register_assert_rewrite(*(f"peftcore.testing.{name}" for name in _CHECKS))

from peftcore.testing.closeness import BFLOAT16, FLOAT32, Tolerance, assert_close  # noqa: E402
from peftcore.testing.parity import Libraries, ParityCase, ParityTests, check_same_distribution  # noqa: E402
from peftcore.testing.prompts import PromptMethodTests  # noqa: E402
from peftcore.testing.samples import SAMPLES, Sample  # noqa: E402
from peftcore.testing.snapshot import Snapshot  # noqa: E402
from peftcore.testing.suite import LayerMethodTests  # noqa: E402
from peftcore.testing.trials import Case, Trial, perturb  # noqa: E402

__all__ = [
    "BFLOAT16",
    "FLOAT32",
    "SAMPLES",
    "Case",
    "LayerMethodTests",
    "Libraries",
    "ParityCase",
    "ParityTests",
    "PromptMethodTests",
    "Sample",
    "Snapshot",
    "Tolerance",
    "Trial",
    "assert_close",
    "check_same_distribution",
    "perturb",
]
