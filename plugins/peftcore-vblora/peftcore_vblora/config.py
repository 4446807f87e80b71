"""VBLoRAConfig: what VB-LoRA can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, input_dropout_option, layout_option, option


class VBLoRAConfig(LayerConfig, method="vblora"):
    """Low-rank adaptation whose factors are mixed from one bank of vectors, W' = W + B · A (arXiv 2405.15179).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(4, "Rank: rows of A and columns of B.", at_least=1)
    num_vectors: int = option(256, "Vectors in the bank; more for larger models.", at_least=1)
    vector_length: int = option(
        256, "Length of the vectors, which must divide the inputs and the outputs of all layers.", at_least=1
    )
    topk: int = option(2, "Of how many vectors each piece of a factor is mixed.", at_least=1)
    save_only_topk_weights: bool = option(
        False, "Write files that hold the chosen vectors' weights alone: small, and not to be trained further."
    )
    vblora_dropout: float = input_dropout_option()
    fan_in_fan_out: bool = layout_option()
    init_vector_bank_bound: float = option(
        0.02, "The bank starts uniform within ± this; zero would leave all gradients zero.", at_least=0
    )
    init_logits_std: float = option(0.1, "The logits start normal with this standard deviation.", at_least=0)

    def validate(self) -> None:
        """Check the fields, and that they go together."""
        super().validate()
        if self.topk > self.num_vectors:
            self.refuse("topk", f"can't choose {self.topk} of num_vectors={self.num_vectors} vectors")
