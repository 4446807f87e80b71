"""Which modules, or bare parameters, of a model a config means.

Names, wildcards and regular expressions are compiled in :mod:`~peftcore.targets.names`; a config's whole request is
read by :mod:`~peftcore.targets.matcher`; :mod:`~peftcore.targets.finder` walks the model once and answers with a
report (:mod:`~peftcore.targets.report`).
What can be adapted is told by the caller's function, so nothing here knows a kind of layer.

How an entry of ``target_modules`` (or ``exclude_modules``) is read:

==================================  ==================================================================================
a list or set of                    names: the whole dotted name or its end (``q_proj``, ``self_attn.q_proj``);
                                    with ``*``, ``?`` or ``[``, wildcards over the whole dotted name, where ``*`` runs
                                    across dots (``*.layers.[01].*.q_proj``)
one str                             a regular expression that must match a whole dotted name
the str ``"all-linear"``            every linear layer but the output head
``None``, with ``exclude_modules``  every supported layer but those and the output head
==================================  ==================================================================================
"""

from peftcore.targets.finder import find_parameters, find_targets
from peftcore.targets.inventory import Inventory, sites_of
from peftcore.targets.matcher import ALL_LINEAR, EVERY_LAYER, ModuleMatcher, Reading
from peftcore.targets.nearest import NearestNames
from peftcore.targets.report import Match, OnUnmatched, ParameterMatch, ParameterReport, TargetReport, Unsupported

__all__ = [
    "ALL_LINEAR",
    "EVERY_LAYER",
    "Inventory",
    "Match",
    "ModuleMatcher",
    "NearestNames",
    "OnUnmatched",
    "ParameterMatch",
    "ParameterReport",
    "Reading",
    "TargetReport",
    "Unsupported",
    "find_parameters",
    "find_targets",
    "sites_of",
]
