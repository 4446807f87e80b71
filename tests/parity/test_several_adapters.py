"""Several adapters in one model travel together, each in a folder of its name."""

from __future__ import annotations

import peft
import pytest

import peftcore
from peftcore import LoraConfig, PeftModel

from .harness import Case, assert_same, file_tensors, hf_load, perturb

WIDE = Case("bert", target_modules=["query", "dense"], r=5, lora_alpha=7, modules_to_save=["classifier"])
NARROW = Case("bert", target_modules=["query", "value"], r=1, lora_alpha=2, use_rslora=True)
TOKENS = Case("bert", target_modules=["key"], r=3, trainable_token_indices={"word_embeddings": [3, 7]})
CASES = {"default": WIDE, "narrow": NARROW, "tokens": TOKENS}
#: HF PEFT can't save adapters without trained tokens beside one that has some.
BOTH = {"default": WIDE, "narrow": NARROW}


def ours() -> PeftModel:
    model = peftcore.get_peft_model(WIDE.build(), LoraConfig(**WIDE.options))
    for seed, (name, case) in enumerate(CASES.items()):
        if name != "default":
            model.add_adapter(name, LoraConfig(**case.options))
        model.set_adapter(name)
        perturb(model, seed)
    model.set_adapter("default")
    return model.eval()


def theirs() -> peft.PeftModel:
    model = peft.get_peft_model(WIDE.build(), peft.LoraConfig(**WIDE.options))
    for seed, (name, case) in enumerate(BOTH.items()):
        if name != "default":
            model.add_adapter(name, peft.LoraConfig(**case.options))
        model.set_adapter(name)
        perturb(model, seed)
    model.set_adapter("default")
    return model.eval()


def test_all_written_here_act_the_same_there(tmp_path):
    here = ours()
    here.save_pretrained(tmp_path)
    there = hf_load(WIDE.build(), tmp_path)
    for name in ("narrow", "tokens"):
        there.load_adapter(tmp_path / name, name)
    for name in CASES:
        here.set_adapter(name)
        there.set_adapter(name)
        assert_same(WIDE.answer(here), WIDE.answer(there))


def test_all_written_there_act_the_same_here(tmp_path):
    there = theirs()
    there.save_pretrained(str(tmp_path))
    here = PeftModel.from_pretrained(WIDE.build(), tmp_path)
    here.load_adapter(tmp_path, "narrow", subfolder="narrow")
    here.eval()
    for name in BOTH:
        here.set_adapter(name)
        there.set_adapter(name)
        assert_same(WIDE.answer(here), WIDE.answer(there))


def test_both_write_the_same_files(tmp_path):
    theirs().save_pretrained(str(tmp_path / "theirs"))
    here = PeftModel.from_pretrained(WIDE.build(), tmp_path / "theirs")
    here.load_adapter(tmp_path / "theirs" / "narrow", "narrow")
    here.save_pretrained(tmp_path / "ours")
    for folder in (".", "narrow"):
        wanted = file_tensors(tmp_path / "theirs" / folder)
        written = file_tensors(tmp_path / "ours" / folder)
        assert {name: value.tolist() for name, value in written.items()} == {
            name: value.tolist() for name, value in wanted.items()
        }


@pytest.mark.parametrize("names", [["narrow"], ["narrow", "default"]])
def test_selected_adapters_are_the_ones_written(names, tmp_path):
    ours().save_pretrained(tmp_path / "ours", selected_adapters=names)
    theirs().save_pretrained(str(tmp_path / "theirs"), selected_adapters=names)

    def written(root):
        return {path.relative_to(root) for path in root.rglob("adapter_*")}

    assert written(tmp_path / "ours") == written(tmp_path / "theirs")


def loaded_in_both(tmp_path) -> tuple[PeftModel, peft.PeftModel]:
    """Two adapters, `a` and `b`, of different ranks and on different layers."""
    LINEAR.ours("a", 0).save_pretrained(tmp_path)
    OTHER.ours("b", 1).save_pretrained(tmp_path)
    here = PeftModel.from_pretrained(LINEAR.build(), tmp_path / "a", "a")
    there = hf_load(LINEAR.build(), tmp_path / "a", "a")
    here.load_adapter(tmp_path / "b", "b")
    there.load_adapter(str(tmp_path / "b"), "b")
    return here.eval(), there.eval()


LINEAR = Case("mlp", target_modules=["first", "second"], r=3)
OTHER = Case("mlp", target_modules=["first"], r=1)


def test_several_at_once_act_and_merge_the_same(tmp_path):
    """Both libraries add the changes of all active adapters."""
    here, there = loaded_in_both(tmp_path)
    here.set_adapter(["a", "b"])
    there.base_model.set_adapter(["a", "b"])
    expected = LINEAR.answer(there)
    assert_same(LINEAR.answer(here), expected)
    assert_same(LINEAR.answer(here.merge_and_unload()), LINEAR.answer(there.merge_and_unload()))


def test_a_chosen_adapter_is_merged_the_same(tmp_path):
    here, there = loaded_in_both(tmp_path)
    here.merge_adapter(["b"])
    there.merge_adapter(["b"])
    here.set_adapter("b")
    there.set_adapter("b")
    assert_same(LINEAR.answer(here), LINEAR.answer(there))


def test_a_mixed_batch_gives_the_same_rows(tmp_path):
    here, there = loaded_in_both(tmp_path)
    names = ["b", "__base__", "a", "b"]
    assert_same(LINEAR.answer(here, adapter_names=names), LINEAR.answer(there, adapter_names=names))
