"""transformers' Trainer with a PeftModel."""

import pytest
import torch
from torch.utils.data import Dataset

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict

from .methods import PlainConfig
from .models import same

transformers = pytest.importorskip("transformers")


class Rows(Dataset):
    """Eight rows with a column that the model does not take."""

    def __len__(self):
        return 8

    def __getitem__(self, row):
        return {"input_ids": torch.arange(row + 1, row + 6), "labels": row % 3, "text": f"row {row}"}


def classifier():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
def test_two_steps(tmp_path, checkpointing):
    model = get_peft_model(classifier(), PlainConfig(target_modules=["query", "value"], task_type="SEQ_CLS"))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        gradient_checkpointing=checkpointing,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.train()
    after = get_peft_model_state_dict(model)
    assert [key for key in after if torch.equal(after[key], before[key])] == []
    assert [name for name, p in model.named_parameters() if name in frozen and not torch.equal(p, frozen[name])] == []
    assert "eval_loss" in trainer.evaluate()
    assert trainer.predict(Rows()).predictions.shape == (8, 3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(classifier(), tmp_path / "adapter").eval()
    ids = torch.arange(1, 11).reshape(2, 5)
    same(loaded(ids).logits, model.eval()(ids).logits)
