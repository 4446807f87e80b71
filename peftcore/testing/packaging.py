"""Checks of the plugin as it is installed."""

from __future__ import annotations

import json
import subprocess
import sys

from peftcore import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PeftType
from peftcore.registry import registry
from peftcore.testing.basis import MethodTests

#: Distributions that take long to import, and that few users of a method have.
HEAVY = frozenset(
    {"accelerate", "bitsandbytes", "datasets", "diffusers", "huggingface_hub", "matplotlib", "pandas", "pytest"}
    | {"rich", "scipy", "sklearn", "tensorflow", "torchvision", "transformers", "typer"}
)

_IMPORT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
import peftcore
before = set(sys.modules)
importlib.import_module(sys.argv[2])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


class PackagingTests(MethodTests):
    """The method comes from an installed plugin, and says the same everywhere."""

    def test_method_comes_from_an_installed_plugin(self) -> None:
        """An entry point names the method, and no other distribution claims it."""
        status = [record for record in registry.status() if self.method in record.methods and record.distribution]
        assert status, (
            f"No installed distribution has an entry point {self.method!r} in the group 'peftcore'. "
            "Write [project.entry-points.peftcore] into pyproject.toml and install the plugin (pip install -e .)."
        )
        states = {record.distribution: record.state for record in status}
        assert len(states) == 1, f"Several distributions claim {self.method!r}: {states}."
        assert registry[self.method], "The plugin does not load."
        assert set(states.values()) <= {"available", "loaded"}, f"The plugin can't serve: {status}."

    def test_importing_the_plugin_is_cheap(self) -> None:
        """Importing it imports nothing heavy, such as transformers; what needs one imports it where it is used."""
        module = registry.catalog.claim(self.method).entry_point.module
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, json.dumps(sys.path), module], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{module} can't be imported alone:\n{done.stderr}"
        heavy = {name.partition(".")[0] for name in json.loads(done.stdout)} & HEAVY
        assert not heavy, f"Importing {module} imports {', '.join(sorted(heavy))}. Import them where they are used."


class NameTests(MethodTests):
    """What the method is called, wherever it is asked."""

    def test_names_are_consistent(self) -> None:
        """Method, config, PeftType and the mappings say the same."""
        method, peft_type = self.peft_method(), PeftType(self.method)
        assert method.name == self.method, f"The registry has {method.name!r} under {self.method!r}."
        declared = method.config_cls.method
        assert declared == self.method, f"{method.config_cls.__name__} is for {declared!r}."
        assert PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] is method.config_cls
        assert PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] == method.prefix
        assert method.prefix.endswith("_"), f"The prefix {method.prefix!r} must end in an underscore."
        config = method.config_cls(**self.configs[0])
        assert config.peft_type is peft_type, f"A config's peft_type is {config.peft_type!r}, not {peft_type!r}."

    def test_every_kind_and_every_config_is_accepted_somewhere(self) -> None:
        """Each kind among the adapter class's has a sample that works, and each config works on some sample."""
        plain = {sample.kind for sample in self.samples if sample.plain}
        reached = {case.sample.name for case in self.cases() if case.sample.plain}
        for refusal in self.refusals():
            sample = refusal.case.sample
            assert not sample.plain or sample.name in reached, (
                f"The method says that it supports the kind {sample.kind!r}, but refuses the sample {sample.name!r} "
                f"with every config: {refusal.error} Take the kind out of the adapter's kinds, or add a config for it."
            )
        assert plain & set(self.checked_kinds()), (
            f"There is no sample for any of the kinds {sorted(self.checked_kinds())}; add one to `samples`."
        )
        for options in self.configs:
            used = any(case.options == options for case in self.cases())
            errors = {str(refusal.error) for refusal in self.refusals() if refusal.case.options == options}
            assert used, f"The config {options} is refused everywhere: {'; '.join(sorted(errors))}"
