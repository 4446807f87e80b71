"""peftcore and HF PEFT, measured side by side in one process.

``python -m benchmarks`` runs every subject and prints its tables; ``--write`` keeps them in ``docs/benchmarks.md``.
A subject is one module with ``TITLE``, ``ABOUT`` (what is compared, in markdown) and ``measure(quick) -> list[Table]``,
listed in :mod:`benchmarks.__main__`; :mod:`benchmarks.pairs` has what they measure with.
"""
