"""FourierFTConfig: what FourierFT can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, layout_option, option


class FourierFTConfig(LayerConfig, method="fourierft"):
    """Fourier transform for fine-tuning, W' = W + scaling · Re F⁻¹(S) with a sparse spectrum S (arXiv 2405.03003).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    n_frequency: int = option(
        1000, "Number of entries of the spectrum that train.", at_least=1, pattern="n_frequency_pattern"
    )
    scaling: float = option(150.0, "What the transformed spectrum is multiplied by.")
    random_loc_seed: int = option(
        777, "Seed from which the places of the entries are drawn.", at_least=-(2**63), at_most=2**63 - 1
    )
    fan_in_fan_out: bool = layout_option()
    n_frequency_pattern: dict[str, int] = option(
        {}, "Numbers of entries for single layers, by regular expressions on their paths' ends."
    )
    init_weights: bool = option(
        False, "Start at zero, so that the model is as it was; False starts with a standard normal distribution."
    )

    def validate(self) -> None:
        """Check the fields; one value of ``bias`` has another spelling in files of HF PEFT."""
        if self.bias == "fourier_only":
            self.bias = "fourierft_only"
        super().validate()
