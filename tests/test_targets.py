"""Which modules and parameters a config means: each rule on small models, and naive definitions as the judge."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore.config import LayerConfig
from peftcore.exceptions import ConfigError, TargetError, UnsupportedLayerError
from peftcore.targets import ModuleMatcher, TargetReport, find_parameters, find_targets
from peftcore.targets import names as names_module
from peftcore.targets.names import NamePatterns


class View:
    """Stands for the view of a supported layer."""

    def __init__(self, layer: nn.Module, kind: str) -> None:
        self.layer = layer
        self.kind = kind


KINDS = {nn.Linear: "linear", nn.Embedding: "embedding", nn.Conv1d: "conv1d", nn.MultiheadAttention: "attention"}


def adapt(module: nn.Module) -> View | None:
    return View(module, KINDS[type(module)]) if type(module) in KINDS else None


def tree(**children: nn.Module) -> nn.Module:
    """A container with these children."""
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def linear() -> nn.Linear:
    return nn.Linear(2, 2, bias=False)


def decoder_block() -> nn.Module:
    attention = tree(q_proj=linear(), k_proj=linear(), v_proj=linear(), o_proj=linear())
    return tree(self_attn=attention, mlp=tree(up=linear(), down=linear()), norm=nn.LayerNorm(2))


class Decoder(nn.Module):
    """Three blocks, an embedding and an output head, laid out as in common decoders."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.ModuleList(decoder_block() for _ in range(3))
        self.model = tree(embed=nn.Embedding(3, 2), layers=layers, norm=nn.LayerNorm(2))
        self.lm_head = linear()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def fused_model() -> nn.Module:
    blocks = [tree(self_attn=tree(qkv_proj=linear(), o_proj=linear())) for _ in range(2)]
    return tree(layers=nn.ModuleList(blocks))


QKV = {"qkv_proj": {"q_proj": 4, "k_proj": 1, "v_proj": 1}}


def find(model: nn.Module, targets: object, **options: object) -> TargetReport[View]:
    return find_targets(model, ModuleMatcher(targets, **options), adapt, supported="Linear, Embedding")  # type: ignore[arg-type]


def paths(report: TargetReport[View]) -> list[str]:
    return [match.path for match in report.matched]


def linear_paths(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]


# ------------------------------------------------------------------------------------------------ entries


def test_names_and_suffixes_end_at_dots() -> None:
    model = tree(a=tree(q_proj=linear(), my_q_proj=linear()), q_proj=linear())
    assert paths(find(model, ["q_proj"])) == ["a.q_proj", "q_proj"]
    assert paths(find(model, {"a.q_proj"})) == ["a.q_proj"]


def test_match_says_all_that_a_tuner_needs() -> None:
    model = Decoder()
    (match,) = find(model, ["layers.1.self_attn.q_proj"]).matched
    attention = model.get_submodule("model.layers.1.self_attn")
    assert match.path == "model.layers.1.self_attn.q_proj"
    assert match.pattern == "layers.1.self_attn.q_proj"
    assert match.sites == ((attention, "q_proj"),)
    assert match.module is attention.q_proj and match.layer.layer is attention.q_proj
    assert match.parts == ()


@pytest.mark.parametrize(
    "entry", ["*.layers.0.*.q_proj", "*.layers.[01].*", "model.layers.?.mlp.up", "*_proj", "*.layers.[!0].mlp.*"]
)
def test_wildcards_run_over_the_whole_name(entry: str) -> None:
    model = Decoder()
    assert paths(find(model, [entry])) == [path for path in linear_paths(model) if fnmatch.fnmatchcase(path, entry)]


def test_wildcards_and_names_together() -> None:
    report = find(Decoder(), ["*.layers.0.*.q_proj", "down", "model.embed"])
    assert [(match.pattern, match.path) for match in report.matched] == [
        ("model.embed", "model.embed"),
        ("*.layers.0.*.q_proj", "model.layers.0.self_attn.q_proj"),
        ("down", "model.layers.0.mlp.down"),
        ("down", "model.layers.1.mlp.down"),
        ("down", "model.layers.2.mlp.down"),
    ]


def test_str_is_a_regular_expression_for_whole_names() -> None:
    model = Decoder()
    assert paths(find(model, r".*\.1\..*_proj")) == [
        p for p in linear_paths(model) if re.fullmatch(r".*\.1\..*_proj", p)
    ]
    with pytest.raises(TargetError, match=re.escape("write ['q_proj']")):
        find(model, "q_proj").check("error")
    assert paths(find(model, "lm_head")) == ["lm_head"]


@pytest.mark.parametrize("spelling", ["all-linear", "All-Linear", "ALL-LINEAR"])
def test_all_linear_leaves_out_the_output_head(spelling: str) -> None:
    model = Decoder()
    report = find(model, spelling)
    assert paths(report) == [path for path in linear_paths(model) if path != "lm_head"]
    assert {match.pattern for match in report.matched} == {"all-linear"}
    assert report.unsupported == ()
    report.check("error")


def test_all_linear_without_a_head_takes_every_linear() -> None:
    class Headless(Decoder):
        def get_output_embeddings(self) -> nn.Module:
            raise NotImplementedError

    for model in (tree(a=linear(), lm_head=linear()), Headless()):
        assert paths(find(model, "all-linear")) == linear_paths(model)


def test_names_reach_the_output_head() -> None:
    assert paths(find(Decoder(), ["lm_head"])) == ["lm_head"]


# --------------------------------------------------------------------------------------- what is left out


def test_exclude_only_takes_every_supported_layer_but_those() -> None:
    model = Decoder()
    report = find(model, None, exclude_modules=["*_proj", "layers.0.mlp.up"])
    left = [p for p in linear_paths(model) if not p.endswith("_proj") and p not in ("lm_head", "model.layers.0.mlp.up")]
    assert paths(report) == ["model.embed", *left]
    report.check("error")


def test_exclude_only_takes_no_view_of_a_whole_module() -> None:
    def adapt_all(module: nn.Module) -> View:
        return adapt(module) or View(module, "module")

    model = tree(a=tree(b=linear(), c=linear()))
    assert paths(find_targets(model, ModuleMatcher(None, ["c"]), adapt_all)) == ["a.b"]
    assert paths(find_targets(model, ModuleMatcher(["a"]), adapt_all)) == ["a"]


@pytest.mark.parametrize("exclude", [["layers.1.self_attn.q_proj"], {"*.1.*"}, r".*\.1\..*"])
def test_exclusions_stand_above_targets(exclude: object) -> None:
    report = find(Decoder(), ["q_proj"], exclude_modules=exclude)
    assert paths(report) == ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"]
    report.check("error")


def test_exclusion_that_fits_nothing_is_reported() -> None:
    report = find(Decoder(), ["q_proj"], exclude_modules=["lm_haed", "down"])
    assert dict(report.unmatched) == {"exclude_modules=lm_haed": ("lm_head",)}
    with pytest.raises(TargetError, match="exclude_modules: 'lm_haed' fits no module"):
        report.check("error")


def test_excluding_a_container_by_name_is_no_silent_failure() -> None:
    model = Decoder()
    for targets in (["q_proj"], "all-linear", None):
        with pytest.raises(TargetError, match=re.escape("'*layers.1.*'")):
            find(model, targets, exclude_modules=["layers.1"]).check("error")
        find(model, targets, exclude_modules=["layers.1", "*layers.1.*"]).check("error")


def test_excluding_everything_is_an_error_that_says_so() -> None:
    with pytest.raises(TargetError, match="leaves no module"):
        find(Decoder(), ["q_proj"], exclude_modules=["q_proj"]).check("ignore")


def test_modules_to_save_are_no_targets_nor_is_what_stands_in_them() -> None:
    model = tree(body=tree(dense=linear()), classifier=tree(dense=linear()), my_classifier=tree(dense=linear()))
    report = find(model, ["dense"], modules_to_save=["classifier"])
    assert paths(report) == ["body.dense", "my_classifier.dense"]
    assert paths(find(model, "all-linear", modules_to_save=["classifier.dense"])) == [
        "body.dense",
        "my_classifier.dense",
    ]


# ------------------------------------------------------------------------------------------------- layers


def test_layers_to_transform() -> None:
    model = Decoder()
    for layers in (1, [1], [1, 2]):
        wanted = {layers} if isinstance(layers, int) else set(layers)
        found = paths(find(model, ["up"], layers_to_transform=layers))
        assert found == [f"model.layers.{i}.mlp.up" for i in sorted(wanted)]


def test_layers_pattern_says_which_number_counts() -> None:
    model = tree(tower=nn.ModuleList([tree(h=nn.ModuleList([tree(fc=linear()) for _ in range(3)])) for _ in range(2)]))
    first = find(model, ["fc"], layers_to_transform=[1])
    assert paths(first) == [f"tower.1.h.{i}.fc" for i in range(3)]
    for pattern in ("h", ["h", "blocks"]):
        assert paths(find(model, ["fc"], layers_to_transform=[2], layers_pattern=pattern)) == [
            "tower.0.h.2.fc",
            "tower.1.h.2.fc",
        ]


def test_names_without_an_index_do_not_match() -> None:
    report = find(Decoder(), ["up", "lm_head"], layers_to_transform=[0])
    assert paths(report) == ["model.layers.0.mlp.up"]
    with pytest.raises(TargetError, match=r"'lm_head'.*none in the layers of layers_to_transform"):
        report.check("error")


def test_number_alone_is_no_list_of_layers() -> None:
    model = nn.Sequential(nn.Sequential(linear(), linear()), tree(h=nn.ModuleList([linear(), linear()])))
    assert paths(find(model, ["1", "0"], layers_to_transform=[1])) == ["1.h.1"]


def test_shared_module_is_asked_for_by_the_names_that_layers_to_transform_allows() -> None:
    shared = linear()
    model = tree(h=nn.ModuleList([tree(a=shared), tree(b=shared)]))
    report = find(model, ["a", "b"], layers_to_transform=[1])
    assert [match.pattern for match in report.matched] == ["b"]
    assert list(report.unmatched) == ["a"]


def test_index_that_no_layer_has_is_reported() -> None:
    report = find(Decoder(), ["up"], layers_to_transform=[0, 99])
    assert list(report.unmatched) == ["layers_to_transform=99"]
    with pytest.raises(TargetError, match="layers 0 to 2"):
        report.check("error")


# -------------------------------------------------------------------------------------------- fused modules


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["v_proj", "q_proj"], {0: ("q_proj", "v_proj"), 1: ("q_proj", "v_proj")}),
        (["layers.0.self_attn.q_proj"], {0: ("q_proj",)}),
        (["*.1.*.q_proj", "k_proj"], {0: ("k_proj",), 1: ("q_proj", "k_proj")}),
        (["*.[kv]_proj"], {0: ("k_proj", "v_proj"), 1: ("k_proj", "v_proj")}),
        (r".*\.0\..*\.(q|v)_proj", {0: ("q_proj", "v_proj")}),
        (["qkv_proj"], {0: (), 1: ()}),
        (["*.self_attn.qkv*"], {0: (), 1: ()}),
        (r".*\.qkv_proj", {0: (), 1: ()}),
        (r".*\.(qkv|k)_proj", {0: (), 1: ()}),
        (["*.[q]kv_proj", "*.q*_proj"], {0: (), 1: ()}),
    ],
)
@pytest.mark.parametrize("mapping", [QKV, {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}])
def test_aliases_mean_parts_of_the_fused_module(
    entries: object, expected: dict[int, tuple[str, ...]], mapping: object
) -> None:
    report = find(fused_model(), entries, canonical_modules=mapping)
    assert {match.path: match.parts for match in report.matched} == {
        f"layers.{layer}.self_attn.qkv_proj": parts for layer, parts in expected.items()
    }
    report.check("error")


def test_match_names_the_entry_with_the_alias() -> None:
    matcher = ModuleMatcher(["layers.0.self_attn.q_proj"], canonical_modules=QKV)
    assert matcher.match(linear(), "qkv_proj", "layers.0.self_attn") == (
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.qkv_proj",
    )
    assert matcher.match(linear(), "qkv_proj", "layers.1.self_attn") is None
    assert matcher.match(linear(), "layers.0.self_attn.o_proj") is None


def test_whole_and_part_of_one_module_contradict() -> None:
    with pytest.raises(TargetError, match=r"whole of layers.0.self_attn.qkv_proj .*q_proj"):
        find(fused_model(), ["qkv_proj", "q_proj"], canonical_modules=QKV)
    both = find(fused_model(), ["layers.0.self_attn.qkv_proj", "layers.1.self_attn.q_proj"], canonical_modules=QKV)
    assert [match.parts for match in both.matched] == [(), ("q_proj",)]


def test_aliases_are_also_names_of_real_modules() -> None:
    model = tree(text=fused_model(), vision=Decoder())
    report = find(model, ["q_proj"], canonical_modules=QKV)
    assert {match.path.partition(".")[0] for match in report.matched} == {"text", "vision"}
    assert {match.parts for match in report.matched} == {(), ("q_proj",)}


def test_excluding_an_alias_leaves_the_other_parts() -> None:
    options = {"exclude_modules": ["k_proj"], "canonical_modules": QKV}
    assert {m.parts for m in find(fused_model(), ["qkv_proj"], **options).matched} == {("q_proj", "v_proj")}
    assert {m.parts for m in find(fused_model(), ["q_proj", "k_proj"], **options).matched} == {("q_proj",)}
    assert find(fused_model(), ["k_proj"], **options).matched == ()


def test_alias_that_fits_nothing_is_an_error_with_the_aliases_as_suggestions() -> None:
    report = find(fused_model(), ["k_porj"], canonical_modules=QKV)
    assert "k_proj" in report.unmatched["k_porj"]


@pytest.mark.parametrize(
    "mapping",
    [
        {"f": "q"},
        {"f": []},
        {"f": ["q", "q"]},
        {"f": ["f"]},
        {"f": {"q": 0}},
        {"f": {"q": True}},
        {"f": ["a.b"]},
        {"f": 3},
    ],
)
def test_malformed_canonical_mapping_is_refused(mapping: object) -> None:
    with pytest.raises(ConfigError, match="canonical_modules"):
        ModuleMatcher(["q"], canonical_modules=mapping)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- the walk


def test_shared_module_is_one_match_with_all_its_sites() -> None:
    shared = linear()
    model = tree(a=tree(x=shared), b=tree(y=shared))
    for entry in ("a.x", "y", "*.y"):
        (match,) = find(model, [entry]).matched
        assert match.path == "a.x"
        assert match.sites == ((model.a, "x"), (model.b, "y"))
        find(model, [entry]).check("error")
    assert find(model, ["x"], exclude_modules=["b.y"]).matched == ()


def test_shared_block_is_known_by_every_name_and_stands_once() -> None:
    block = tree(fc=linear())
    model = tree(layers=nn.ModuleList([block] * 3))
    report = find(model, ["layers.2.fc"])
    (match,) = report.matched
    assert match.sites == ((block, "fc"),)
    assert paths(find(model, ["fc"], layers_to_transform=[1])) == ["layers.0.fc"]
    report.check("error")


def test_cycles_end() -> None:
    model = tree(a=tree(q=linear()), b=tree())
    model.a.add_module("parent", model)
    model.a.add_module("brother", model.b)
    model.b.add_module("brother", model.a)
    assert paths(find(model, ["q"])) == ["a.q"]


class Wrapper(nn.Module):
    """Stands for an adapted layer."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict({"default": linear()})


def unwrap(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, Wrapper) else module


def test_adapted_output_head_is_still_left_out() -> None:
    model = Decoder()
    model.lm_head = Wrapper(model.lm_head)
    report = find_targets(model, ModuleMatcher("all-linear"), adapt, unwrap)
    assert "lm_head" not in paths(report) and len(report.matched) == len(linear_paths(Decoder())) - 1


def test_adapted_layers_are_seen_through() -> None:
    attention = nn.MultiheadAttention(2, 1)
    model = tree(fc=linear(), attention=attention)
    before = [(match.path, match.module) for match in find(model, None, exclude_modules=["none"]).matched]
    attention.out_proj = Wrapper(attention.out_proj)
    model.fc, model.attention = Wrapper(model.fc), Wrapper(attention)
    report = find_targets(model, ModuleMatcher(None, ["none"]), adapt, unwrap)
    assert [(match.path, match.module) for match in report.matched] == before
    assert report.matched[0].sites == ((model, "fc"),)
    (inner,) = find_targets(model, ModuleMatcher(r".*out_proj"), lambda m: View(m, "linear"), unwrap).matched
    assert inner.path == "attention.out_proj" and inner.sites == ((attention, "out_proj"),)


def test_adapt_is_asked_about_candidates_alone() -> None:
    model, asked = Decoder(), []

    def counted(module: nn.Module) -> View | None:
        asked.append(module)
        return adapt(module)

    report = find_targets(model, ModuleMatcher(["q_proj", "*.mlp.up"], ["layers.0.self_attn.q_proj"]), counted)
    assert asked == [match.module for match in report.matched]


@pytest.mark.parametrize("entries", [1, 300])
def test_each_name_is_matched_once_however_many_wildcards(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Counted:
        def __init__(self, pattern: re.Pattern[str]) -> None:
            self.pattern = pattern

        def fullmatch(self, path: str) -> re.Match[str] | None:
            calls.append(path)
            return self.pattern.fullmatch(path)

    compile_wildcards: Callable[..., re.Pattern[str]] = names_module._compile_wildcards
    monkeypatch.setattr(names_module, "_compile_wildcards", lambda wildcards: Counted(compile_wildcards(wildcards)))
    model = tree(layers=nn.ModuleList([tree(fc=linear()) for _ in range(entries)]))
    report = find(model, [f"*ayers.{i}.fc" for i in range(entries)])
    assert len(report.matched) == entries
    report.check("error")
    assert calls == [path for path, _ in model.named_modules() if path]


# -------------------------------------------------------------------------------------------- failures


def test_nothing_asked_names_the_linear_layers() -> None:
    for targets in (None, [], set(), ""):
        with pytest.raises(TargetError, match=r"Set target_modules.*q_proj, k_proj, v_proj, o_proj, up, down\."):
            find(Decoder(), targets)
        empty = find(Decoder(), targets, may_be_empty=True)
        assert empty.matched == ()
        empty.check("error")


def test_entry_that_fits_nothing_is_an_error_with_the_nearest_names() -> None:
    report = find(Decoder(), ["q_proj", "v_porj", "*.layer.0.*.up", "self_atn.k_proj"])
    assert set(report.unmatched) == {"v_porj", "*.layer.0.*.up", "self_atn.k_proj"}
    assert report.unmatched["v_porj"][0] == "v_proj"
    assert report.unmatched["self_atn.k_proj"][0] == "self_attn.k_proj"
    assert report.unmatched["*.layer.0.*.up"][0] == "model.layers.0.mlp.up"
    with pytest.raises(TargetError, match=r"'v_porj' fits no module of the model. The nearest names are: v_proj"):
        report.check("error")
    with pytest.warns(UserWarning, match="v_porj"):
        report.check("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.check("ignore")
    with pytest.raises(ValueError, match="on_unmatched"):
        report.check("raise")  # type: ignore[arg-type]


def test_nothing_matched_is_an_error_in_every_mode() -> None:
    for mode in ("error", "warn", "ignore"):
        with pytest.raises(TargetError, match="qproj"):
            find(Decoder(), ["qproj"]).check(mode)  # type: ignore[arg-type]


def test_overlapping_entries_are_all_met() -> None:
    entries = ["q_proj", "self_attn.q_proj", "*.q_proj", "*.layers.*.q_proj", "model.layers.[012].self_attn.q_*"]
    report = find(Decoder(), entries)
    assert len(report.matched) == 3 and not report.unmatched
    assert {match.pattern for match in report.matched} == {"self_attn.q_proj"}


@pytest.mark.parametrize("entry", ["norm", "layers.0.norm"])
def test_named_module_that_cannot_be_adapted_is_an_error(entry: str) -> None:
    report = find(Decoder(), ["q_proj", entry])
    assert report.unsupported[0].class_name == "LayerNorm"
    for mode in ("error", "warn", "ignore"):
        with pytest.raises(UnsupportedLayerError, match=r"model.layers.*norm.*LayerNorm.*\n.*Linear, Embedding"):
            report.check(mode)  # type: ignore[arg-type]


def test_name_that_also_fits_what_cannot_be_adapted_is_an_error() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"b\.x, of class LayerNorm"):
        find(tree(a=tree(x=linear()), b=tree(x=nn.LayerNorm(2))), ["x"]).check("error")


def test_named_container_leads_to_what_is_inside() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"self_attn.q_proj, self_attn.k_proj"):
        find(Decoder(), ["self_attn"]).check("error")


@pytest.mark.parametrize("targets", [["*.layers.0.*"], r".*\.layers\.0\..*"])
def test_patterns_may_hit_what_cannot_be_adapted_as_well(targets: object) -> None:
    report = find(Decoder(), targets)
    assert paths(report) == [path for path in linear_paths(Decoder()) if ".0." in path]
    assert {(u.path, u.class_name) for u in report.unsupported} == {
        ("model.layers.0.self_attn", "Module"),
        ("model.layers.0.mlp", "Module"),
        ("model.layers.0.norm", "LayerNorm"),
    }
    report.check("error")


@pytest.mark.parametrize("targets", [["q_proj", "*.layers.?.norm"], r".*norm"])
def test_pattern_that_hits_only_what_cannot_be_adapted_is_an_error(targets: object) -> None:
    with pytest.raises(UnsupportedLayerError, match="norm"):
        find(Decoder(), targets).check("error")


@pytest.mark.parametrize("targets", ["(q_proj", ["*.[z-a]"]])
def test_expression_that_cannot_be_read_is_refused(targets: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(targets if isinstance(targets, str) else targets[0])):
        ModuleMatcher(targets)  # type: ignore[arg-type]


def test_failures_leave_the_model_as_it_was() -> None:
    model = Decoder()
    before = [(path, id(module)) for path, module in model.named_modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    for targets, options in [
        (["q_porj"], {}),
        (["norm"], {}),
        ([], {}),
        (["q_proj"], {"exclude_modules": ["nothing"]}),
        (["q_proj"], {"layers_to_transform": 99}),
    ]:
        with pytest.raises(TargetError):
            find(model, targets, **options).check("error")
    assert [(path, id(module)) for path, module in model.named_modules()] == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_report_reads_well() -> None:
    text = str(find(Decoder(), ["q_proj", "*.layers.0.*", "v_porj"]))
    assert "'q_proj': 3 modules: model.layers.*.self_attn.q_proj (x3)" in text
    assert "not found, target_modules: 'v_porj'" in text and "v_proj" in text
    assert "LayerNorm: model.layers.0.norm" in text
    assert "(q_proj, v_proj)" in str(find(fused_model(), ["q_proj", "v_proj"], canonical_modules=QKV))


# ---------------------------------------------------------------------------------------- from a config


class SomeConfig(LayerConfig):
    """A config of no method."""


def test_config_carries_every_option() -> None:
    config = SomeConfig(
        target_modules=["q_proj", "up"],
        exclude_modules=["layers.0.mlp.up"],
        layers_to_transform=[0, 1],
        layers_pattern="layers",
        modules_to_save=["layers.1.self_attn"],
    )
    report = find_targets(Decoder(), ModuleMatcher.from_config(config), adapt)
    assert paths(report) == ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up"]
    fused = ModuleMatcher.from_config(SomeConfig(target_modules=["q_proj"], canonical_modules=QKV))
    assert {match.parts for match in find_targets(fused_model(), fused, adapt).matched} == {("q_proj",)}
    assert fused.canonical_modules == QKV


def test_defaults_count_only_where_the_config_names_no_targets() -> None:
    model = Decoder()
    default = ModuleMatcher.from_config(SomeConfig(exclude_modules=["layers.0.mlp.up"]), ["up"])
    assert default.from_defaults
    assert paths(find_targets(model, default, adapt)) == ["model.layers.1.mlp.up", "model.layers.2.mlp.up"]
    own = ModuleMatcher.from_config(SomeConfig(target_modules=["down"]), ["up"])
    assert not own.from_defaults
    assert {p.rpartition(".")[2] for p in paths(find_targets(model, own, adapt))} == {"down"}


# ------------------------------------------------------------------------------------------- parameters


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(2, 3, 3))
        self.down_proj = nn.Parameter(torch.zeros(2, 3, 3))
        self.register_parameter("bias", None)


def test_parameters_are_found_by_their_names() -> None:
    model = tree(layers=nn.ModuleList([tree(experts=Experts()) for _ in range(2)]))
    report = find_parameters(model, ["experts.gate_up_proj", "layers.1.experts.down_proj"])
    assert [(match.name, match.pattern) for match in report.matched] == [
        ("layers.0.experts.gate_up_proj", "experts.gate_up_proj"),
        ("layers.1.experts.gate_up_proj", "experts.gate_up_proj"),
        ("layers.1.experts.down_proj", "layers.1.experts.down_proj"),
    ]
    first = report.matched[0]
    assert first.module is model.layers[0].experts and first.sites == ((model.layers[0], "experts"),)
    assert (first.path, first.parameter) == ("layers.0.experts", "gate_up_proj")
    report.check("error")


def test_parameters_that_are_not_there() -> None:
    model = tree(experts=Experts())
    report = find_parameters(model, ["experts.gate_up_porj", "experts.bias", "down_proj"])
    assert report.unmatched["experts.gate_up_porj"] == ("experts.gate_up_proj",)
    assert "experts.bias" in report.unmatched
    with pytest.raises(TargetError, match=r"target_parameters: 'experts.gate_up_porj' fits no parameter"):
        report.check("error")
    with pytest.raises(UnsupportedLayerError, match="the model itself"):
        find_parameters(Experts(), ["down_proj"]).check("error")
    find_parameters(model, []).check("error")


# ------------------------------------------------------------------------------------------ properties

COMPONENT = st.sampled_from(["a", "b", "ab", "ba", "q_proj", "0", "1", "10"])
PATH = st.lists(COMPONENT, min_size=1, max_size=4).map(".".join)
WILDCARD = st.lists(
    st.sampled_from(["a", "b", ".", "*", "?", "[ab]", "[!a]", "[0-9]", "q_proj", "[", "**", "^"]), max_size=6
).map("".join)


def model_of(model_paths: set[str]) -> nn.Module:
    """A model whose leaves of these names are Linears; a name below which others stand is a container."""
    root = nn.Module()
    for path in sorted(model_paths):
        module = root
        for name in path.split("."):
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module._modules[name]  # type: ignore[assignment]
    for _, module in list(root.named_modules()):
        for name, child in list(module._modules.items()):
            if not child._modules:  # type: ignore[union-attr]
                module._modules[name] = nn.Linear(1, 1, bias=False, device="meta")
    return root


def naive(entry: str, path: str) -> bool:
    if any(character in entry for character in "*?["):
        return fnmatch.fnmatchcase(path, entry)
    return path == entry or path.endswith("." + entry)


@given(
    st.sets(PATH, min_size=1, max_size=8),
    st.sets(PATH | WILDCARD.filter(bool), min_size=1, max_size=5),
    st.sets(PATH, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_targets_are_those_of_the_naive_definition(model_paths: set[str], entries: set[str], exclude: set[str]) -> None:
    model = model_of(model_paths)
    report = find_targets(model, ModuleMatcher(entries, exclude), adapt)
    wanted = [
        p for p in linear_paths(model) if any(naive(e, p) for e in entries) and not any(naive(e, p) for e in exclude)
    ]
    assert paths(report) == wanted
    assert all(naive(match.pattern, match.path) for match in report.matched)
    every = [path for path, _ in model.named_modules() if path]
    unmet = {e for e in entries if not any(naive(e, path) for path in every)}
    assert {key for key in report.unmatched if not key.startswith("exclude_modules=")} == unmet
    assert {u.path for u in report.unsupported} <= set(every) - set(linear_paths(model))


@given(st.sets(PATH, min_size=1, max_size=8), st.sets(PATH, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_exclude_only_is_the_complement(model_paths: set[str], exclude: set[str]) -> None:
    model = model_of(model_paths)
    report = find_targets(model, ModuleMatcher(None, exclude), adapt)
    assert paths(report) == [path for path in linear_paths(model) if not any(naive(entry, path) for entry in exclude)]


@given(st.lists(WILDCARD, min_size=1, max_size=8), PATH)
@settings(max_examples=500, deadline=None)
def test_wildcards_are_those_of_fnmatch(wildcards: list[str], path: str) -> None:
    entries = [wildcard for wildcard in wildcards if any(character in wildcard for character in "*?[")]
    fits = NamePatterns(entries).fits(path)
    assert all(fnmatch.fnmatchcase(path, entry) for entry in fits)
    assert bool(fits) == any(fnmatch.fnmatchcase(path, entry) for entry in entries)
