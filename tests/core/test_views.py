"""What objects show of themselves, and that nothing in a text is taken for a command."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from peftcore import TaskType, get_peft_model, inspect_targets
from peftcore.registry import registry
from peftcore.views import View, tree

LORA = registry["lora"].config_cls


def drawn(thing, width=80):
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(thing)
    return console.file.getvalue()


def plain_model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


# ----------------------------------------------------------------------------------------------- the view


def test_the_three_forms_hold_the_same():
    view = View("title", ("name", "count"), [("a", "1,000"), ("b", "20")], ["a note"], {"fact": "so"})
    for text in (str(view), view.html(), drawn(view.rich())):
        assert all(word in text for word in ("title", "name", "count", "1,000", "20", "a note", "fact", "so"))


def test_numbers_stand_at_the_right():
    lines = str(View("t", ("name", "count"), [("a", "1,000"), ("b", "20")])).splitlines()
    assert [line[-5:] for line in lines[1:]] == ["count", "1,000", "   20"]


@pytest.mark.parametrize("text", ["\x1b[2J", "\r", "\u202e", "\x07", "\x9b"])
def test_control_characters_are_written_out(text):
    view = View(f"t{text}", ("c",), [(f"c{text}",)], [f"n{text}"], {"f": f"f{text}"})
    for shown in (str(view), view.html(), drawn(view.rich())):
        assert text not in shown.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[2m", "")
        assert shown.count("\\") >= 4


def test_markup_is_text():
    view = View("<b>&[red]x[/red]", ("c",), [("<script>[bold]",)], ["[link]<i>"])
    assert "<script>" not in view.html() and "&lt;script&gt;[bold]" in view.html()
    assert "[red]x[/red]" in drawn(view.rich()) and "<script>[bold]" in drawn(view.rich())


def test_short_names_are_not_broken_where_long_texts_can_be():
    view = View("t", ("name", "meaning"), [("a_name_of_thirty_characters_yes", "long " * 30)])
    shown = drawn(view.rich())
    assert "a_name_of_thirty_characters_yes" in shown and max(map(len, shown.splitlines())) <= 80


def test_a_tree_draws_each_path_once():
    rows = tree({"a.b.c": ("1",), "a.b.d": ("2",), "e": ("3",), "a.f.g": ("4",)})
    assert rows == [
        ("a", ""),
        ("├ b", ""),
        ("│ ├ c", "1"),
        ("│ └ d", "2"),
        ("└ f.g", "4"),
        ("e", "3"),
    ]


# ---------------------------------------------------------------------------------------------- the objects


def test_a_model_shows_its_adapters():
    model = get_peft_model(plain_model(), LORA(r=2, target_modules=["0"]), adapter_name="first")
    model.add_adapter("second", LORA(r=4, target_modules=["0", "2"]))
    model.merge_adapter(["first"])
    view = model.view()
    assert view.rows == [
        ("first", "lora", "1", "24", "active, merged, trains"),
        ("second", "lora", "2", "88", "idle"),
    ]
    trainable, total = model.get_nb_trainable_parameters()
    assert f"{trainable} of {total} parameters train" in view.notes[0]
    for shown in (repr(model), str(model), model._repr_html_(), drawn(model)):
        assert "first" in shown and "second" in shown and "merged" in shown
    assert "ReLU" in repr(model.base_model)
    with model.disable_adapter():
        assert "switched off" in repr(model)


def test_a_models_view_changes_nothing():
    model = get_peft_model(plain_model(), LORA(r=2, target_modules=["0"]))
    x = torch.randn(3, 4)
    before = model(x)
    assert repr(model) == repr(model)
    assert torch.equal(model(x), before)


def test_a_config_writes_the_call_that_makes_it():
    config = LORA(r=4, target_modules=["v", "q"], rank_pattern={"q": 2}, task_type="CAUSAL_LM")
    assert repr(config).startswith("LoraConfig(") and "target_modules={'q', 'v'}" in repr(config)
    assert repr(LORA()) == "LoraConfig()"
    written = repr(config).replace(repr(TaskType.CAUSAL_LM), "'CAUSAL_LM'")
    assert eval(written, {"LoraConfig": LORA}) == config
    for shown in (config._repr_html_(), drawn(config)):
        assert "rank_pattern" in shown and "lora_dropout" not in shown


def test_a_report_is_a_tree_in_which_what_is_alike_stands_once():
    layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(4, 4), "v": nn.Linear(4, 2)}) for _ in range(3))
    layers.append(nn.ModuleDict({"q": nn.Linear(8, 8)}))
    model = nn.ModuleDict({"layers": layers, "head": nn.Linear(4, 9)})
    report = inspect_targets(model, LORA(target_modules=["q", "v", "head", "haed"]))
    shown = [row[0].strip("│├└ ") for row in report.view().rows]
    assert shown == ["layers", "0.q … (x3)", "*.v (x3)", "3.q", "head"]
    assert report.view().title == "target_modules: 8 modules"
    assert any("'haed'" in note and "head" in note for note in report.view().notes)
    for text in (repr(report), report._repr_html_(), drawn(report)):
        assert "head" in text
    counts = report.view({"head": 5}).rows
    assert ("head", "'head'", "Linear", "9 × 4", "5") in counts
