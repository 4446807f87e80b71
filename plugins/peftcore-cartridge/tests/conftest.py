"""A tokenizer of thirty words, made on the spot."""

import pytest


@pytest.fixture
def tokenizer():
    """Return a tokenizer that makes the word "w3" the token 3, with a template for chats."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {**{f"w{number}": number for number in range(29)}, "<unk>": 29}
    splitting = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    splitting.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=splitting, unk_token="<unk>")
    made.chat_template = "{% for message in messages %}w1 {{ message['content'] }} w2{% endfor %}"
    return made
