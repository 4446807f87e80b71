"""The suite that an author's test class derives from."""

from __future__ import annotations

from peftcore.testing.composition import CompositionTests
from peftcore.testing.configs import ConfigTests
from peftcore.testing.files import FileTests
from peftcore.testing.forward import ForwardTests
from peftcore.testing.lifecycle import LifecycleTests
from peftcore.testing.merging import MergingTests
from peftcore.testing.packaging import NameTests, PackagingTests
from peftcore.testing.training import TrainingTests


class LayerMethodTests(
    PackagingTests,
    NameTests,
    ConfigTests,
    TrainingTests,
    ForwardTests,
    MergingTests,
    CompositionTests,
    FileTests,
    LifecycleTests,
):
    """Everything that a method that adapts layers must keep.

    A subclass gives ``method`` and at least two different ``configs``; see :class:`peftcore.testing.basis.MethodTests`
    for what else it may say.
    """
