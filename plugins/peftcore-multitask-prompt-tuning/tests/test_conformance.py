"""Multitask prompt tuning keeps what every prompt method promises."""

import torch

from peftcore.testing import PromptMethodTests


class TestMultitaskPromptTuning(PromptMethodTests):
    method = "multitask_prompt_tuning"
    configs = ({"num_virtual_tokens": 3, "num_tasks": 3}, {"num_virtual_tokens": 2, "num_tasks": 4, "num_ranks": 2})
    call_arguments = {"task_ids": torch.tensor([2, 0, 1])}
