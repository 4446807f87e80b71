"""PeftMethod checks itself."""

import dataclasses

import pytest
from torch import nn

from peftcore import PeftMethod, PeftType
from peftcore.adapters.base import Adapter
from peftcore.config import LayerConfig
from peftcore.exceptions import RegistrationError
from peftcore.targets.usual import ATTENTION_PROJECTIONS


class SomeConfig(LayerConfig, method="some_method"):
    """The options of the method."""


class SomeAdapter(Adapter):
    """Does nothing."""


class PrefixedAdapter(SomeAdapter):
    prefix = "given_"


class OtherwisePrefixedTuner:
    prefix = "other_"


def method(**fields):
    return PeftMethod(**{"name": "some_method", "config_cls": SomeConfig, "adapter_cls": SomeAdapter, **fields})


def test_a_complete_method():
    made = method()
    assert made.prefix == "some_method_"
    assert made.peft_type is PeftType.declare("some_method")
    assert made.is_mixed_compatible
    assert made.default_targets == ATTENTION_PROJECTIONS
    assert hash(made) == hash(method())
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"


def test_the_name_is_the_config_s():
    made = PeftMethod(config_cls=SomeConfig, adapter_cls=SomeAdapter)
    assert made == method()
    assert made.name == "some_method"
    with pytest.raises(RegistrationError, match=r"field config_cls: LayerConfig belongs to no method.*method=…"):
        PeftMethod(config_cls=LayerConfig, adapter_cls=SomeAdapter)


def test_what_is_adapted_by_default_follows_from_the_kinds_of_layers():
    class OnEmbeddings(SomeAdapter):
        kinds = frozenset({"embedding"})

    assert method(adapter_cls=OnEmbeddings).default_targets == {}
    assert method(adapter_cls=None, tuner_cls=OtherwisePrefixedTuner).default_targets == {}
    assert method(default_targets={}).default_targets == {}
    assert method(default_targets={"llama": ["q_proj"]}).default_targets == {"llama": ["q_proj"]}


def test_the_prefix_may_be_given_or_declared_by_a_class():
    assert method(prefix="given_").prefix == "given_"
    assert method(prefix=None).prefix == "some_method_"
    assert method(adapter_cls=PrefixedAdapter).prefix == "given_"
    assert method(adapter_cls=PrefixedAdapter, prefix="given_").prefix == "given_"


def test_a_tuner_alone_is_enough():
    assert method(adapter_cls=None, tuner_cls=OtherwisePrefixedTuner).prefix == "other_"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Some_Method"}, "field name: 'Some_Method'"),
        ({"name": 3}, "field name: 3"),
        ({"config_cls": dict}, "field config_cls: .*PeftConfig"),
        ({"config_cls": SomeConfig()}, "field config_cls: .*PeftConfig"),
        ({"name": "other"}, "field config_cls: SomeConfig belongs to the method 'some_method'"),
        ({"config_cls": LayerConfig}, "field config_cls: LayerConfig belongs to the method None"),
        ({"adapter_cls": nn.Linear}, "field adapter_cls: .*Adapter"),
        ({"adapter_cls": "SomeAdapter"}, "field adapter_cls: .*Adapter"),
        ({"adapter_cls": None}, "none of adapter_cls, encoder_cls and tuner_cls"),
        ({"tuner_cls": "tuner"}, "field tuner_cls: 'tuner'"),
        ({"shared_cls": 3}, "field shared_cls: 3"),
        ({"default_targets": ["q_proj"]}, "field default_targets: .*no mapping"),
        ({"default_targets": {"llama": "q_proj"}}, "field default_targets: 'llama' .*'q_proj'"),
        ({"default_targets": {"llama": [3]}}, "field default_targets: 'llama'"),
        ({"default_targets": {3: ["q_proj"]}}, "field default_targets: 3"),
        ({"prefix": "a.b"}, "field prefix: 'a.b'"),
        ({"prefix": 3}, "field prefix: 3"),
        ({"adapter_cls": PrefixedAdapter, "prefix": "x_"}, "PrefixedAdapter declares 'given_'.*'x_'"),
        (
            {"adapter_cls": PrefixedAdapter, "tuner_cls": OtherwisePrefixedTuner},
            "OtherwisePrefixedTuner declares 'other_'",
        ),
    ],
)
def test_a_method_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(RegistrationError, match=message):
        method(**fields)


def test_every_field_is_documented():
    import inspect

    source = inspect.getsource(PeftMethod)
    for field in dataclasses.fields(PeftMethod):
        declaration = source.index(f"    {field.name}: ")
        following = source[declaration:].splitlines()[1]
        assert following.strip().startswith('"""'), field.name
