"""LN tuning here and in HF PEFT."""

import peft
import pytest
import torch
from torch import nn

import peftcore
from peftcore.exceptions import CompositionError
from peftcore.testing import Libraries, ParityCase, ParityTests, perturb
from peftcore.testing.models import gpt2, llama
from peftcore.testing.parity import save
from peftcore_ln_tuning import LNTuningConfig

IDS = torch.arange(20).reshape(4, 5) % 11


class Normed(nn.Module):
    """Norms of several sorts, and layers that are none."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8)
        self.batch = nn.BatchNorm1d(5)
        self.lin = nn.Linear(8, 6, bias=False)
        self.group = nn.GroupNorm(1, 5)
        self.projector = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7))

    def forward(self, ids):
        return self.projector(self.group(self.lin(self.batch(self.rms(self.norm(self.embed(ids)))))))


def case(build, **options):
    return ParityCase(build, IDS, options, model_scale=0.2)


#: HF PEFT can't merge it.
CONTAINER = Libraries("ln_tuning", case(Normed, target_modules=["projector"]))


class TestParity(ParityTests):
    method = "ln_tuning"
    cases = {
        "norms": case(Normed, target_modules=["norm", "rms", "batch", "group"]),
        "others": case(Normed, target_modules=["embed", "lin"], modules_to_save=["norm"]),
        "excluded": case(Normed, target_modules=["norm", "rms"], exclude_modules=["rms"]),
        "llama": case(llama),
        "gpt2": case(gpt2),
        "expression": case(llama, target_modules=r".*layers\.1\..*layernorm"),
    }
    starts = {
        "the frozen norm's": ParityCase(
            lambda: nn.Sequential(nn.LayerNorm(4000)), options={"target_modules": ["0"]}, model_scale=0.2
        )
    }

    @pytest.mark.parametrize("writer", ["here", "there"])
    def test_what_a_batch_norm_has_counted_travels(self, writer, tmp_path):
        libraries = Libraries("ln_tuning", case(Normed, target_modules=["batch"]))
        written = libraries.ours() if writer == "here" else libraries.theirs()
        written.train()(IDS)
        state = save(written.eval(), tmp_path)
        assert [value for name, value in state.items() if name.endswith("num_batches_tracked")] == [1]
        read = libraries.load_there(tmp_path) if writer == "here" else libraries.load_here(tmp_path)
        self.check_same(libraries, written, read)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("name", ["default", "other"])
def test_a_container_has_the_adapter_s_name_in_what_hf_peft_writes(name, tmp_path):
    """It is left in the names of what lies inside."""
    answer = CONTAINER.case.answer
    theirs = peft.get_peft_model(CONTAINER.case.frozen(), peft.LNTuningConfig(**CONTAINER.case.options), name).eval()
    perturb(theirs)
    theirs.save_pretrained(tmp_path)
    state = peft.get_peft_model_state_dict(theirs, adapter_name=name)
    assert f"base_model.model.projector.ln_tuning_layers.{name}.0.weight" in state
    ours = CONTAINER.ours(perturbed=False)
    peftcore.set_peft_model_state_dict(ours, state)
    for model in (ours, CONTAINER.load_here(tmp_path if name == "default" else tmp_path / name)):
        assert torch.equal(answer(model), answer(theirs))


def test_hf_peft_reads_a_container(tmp_path):
    ours, answer = CONTAINER.ours(), CONTAINER.case.answer
    save(ours, tmp_path)
    for model in (CONTAINER.load_there(tmp_path), CONTAINER.load_here(tmp_path)):
        assert torch.equal(answer(model), answer(ours))


def test_one_at_a_time_in_both():
    """Which of two copies of one layer acts is defined in neither library."""
    libraries = Libraries("ln_tuning", case(Normed, target_modules=["norm"]))
    ours, theirs, answer = libraries.ours(), libraries.theirs(), libraries.case.answer
    ours.add_adapter("other", LNTuningConfig(target_modules=["norm"]))
    theirs.add_adapter("other", peft.LNTuningConfig(target_modules=["norm"]))
    before = answer(ours)
    with pytest.raises(CompositionError):
        ours.set_adapter(["default", "other"])
    assert torch.equal(answer(ours), before)
    theirs.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError):
        answer(theirs)
