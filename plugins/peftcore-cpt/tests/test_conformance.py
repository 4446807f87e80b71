"""CPT keeps what every prompt method promises."""

from peftcore.testing import PromptMethodTests

FAR = {"opt_projection_epsilon": 100.0, "opt_projection_format_epsilon": 100.0}


class TestCPT(PromptMethodTests):
    method = "cpt"
    configs = (
        {"cpt_token_ids": [3, 9, 4], **FAR},
        {"cpt_token_ids": [5, 2, 7, 8], "cpt_tokens_type_mask": [1, 2, 3, 4], "opt_weighted_loss_type": "decay", **FAR},
    )
