"""The same adapter trains the same way: equal after a step, in equal dtypes, and in generation."""

from __future__ import annotations

import peft
import pytest
import torch

import peftcore
from peftcore import PeftModel

from .cases import CASES, TIED
from .harness import Case, file_tensors, hf_load, inputs_for

#: Dropout draws other numbers.
# Grouped convolutions are left out: HF PEFT also trains what joins one group to another, which ours has as zeros.
STEPPED = {name: case for name, case in (CASES | TIED).items() if name != "dropout"}


def step(model, case: Case) -> None:
    """Take one step of gradient descent on a loss to which every output contributes differently."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    output = model(**inputs_for(case.build()))
    output = output if isinstance(output, torch.Tensor) else output[0]
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    (output * weights).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("case", list(STEPPED.values()), ids=list(STEPPED))
def test_a_step_changes_the_same_tensors_by_the_same(case, tmp_path):
    ours = case.ours()
    ours.save_pretrained(tmp_path / "start")
    theirs = hf_load(case.build(), tmp_path / "start", is_trainable=True)
    step(ours, case)
    step(theirs, case)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    start, here, there = (file_tensors(tmp_path / name) for name in ("start", "ours", "theirs"))
    assert any(not torch.equal(start[name], here[name]) for name in start)
    for name in here:
        change = there[name] - start[name]
        # The numbers themselves are known to 1e-7 of their size, and so is no change more exactly.
        allowed = 1e-4 * change.abs().max().item() + 1e-6
        torch.testing.assert_close(here[name] - start[name], change, rtol=0, atol=allowed)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_adapters_have_the_same_dtypes(dtype, autocast, tmp_path):
    case = Case("bert", target_modules=["query", "word_embeddings"], modules_to_save=["classifier"])
    for library, config_cls, name in ((peftcore, peftcore.LoraConfig, "ours"), (peft, peft.LoraConfig, "theirs")):
        config = config_cls(**case.options)
        model = library.get_peft_model(case.build().to(dtype), config, autocast_adapter_dtype=autocast)
        kwargs = {"save_embedding_layers": False} if library is peft else {}
        model.save_pretrained(tmp_path / name, **kwargs)
    here, there = file_tensors(tmp_path / "ours"), file_tensors(tmp_path / "theirs")
    assert {name: tensor.dtype for name, tensor in here.items()} == {
        name: tensor.dtype for name, tensor in there.items()
    }


def generated(model, case: Case, **kwargs) -> list[list[int]]:
    ids = inputs_for(case.build())["input_ids"]
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0, **kwargs
    ).tolist()


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("model", ["llama", "t5"])
def test_both_generate_the_same(model, beams, tmp_path):
    case = Case(model, target_modules=["q_proj", "v_proj"] if model == "llama" else ["q", "wo"])
    ours = case.ours()
    ours.save_pretrained(tmp_path)
    theirs = hf_load(case.build(), tmp_path)
    expected = generated(ours, case, num_beams=beams)
    assert expected == generated(theirs, case, num_beams=beams)
    assert expected != generated(case.build(), case, num_beams=beams)


@pytest.mark.parametrize("beams", [1, 2])
def test_each_prompt_is_continued_by_its_adapter(beams, tmp_path):
    case = Case("llama", target_modules=["q_proj", "v_proj", "up_proj"])
    case.ours("a", 0).save_pretrained(tmp_path)
    case.ours("b", 1).save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(case.build(), tmp_path / "a", "a").eval()
    ours.load_adapter(tmp_path / "b", "b")
    theirs = hf_load(case.build(), tmp_path / "a", "a")
    theirs.load_adapter(str(tmp_path / "b"), "b")
    names = ["b", "__base__", "a", "b"]
    mixed = generated(ours, case, num_beams=beams, adapter_names=names)
    assert mixed == generated(theirs, case, num_beams=beams, adapter_names=names)
