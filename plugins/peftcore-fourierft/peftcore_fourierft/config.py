"""FourierFTConfig: what FourierFT can be asked."""

from __future__ import annotations

from peftcore.adapters.spectral import SpectralConfig
from peftcore.config import option


class FourierFTConfig(SpectralConfig, method="fourierft"):
    """Fourier transform for fine-tuning, W' = W + scaling · Re F⁻¹(S) with a sparse spectrum S (arXiv 2405.03003).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    scaling: float = option(150.0, "What the transformed spectrum is multiplied by.")
    init_weights: bool = option(
        False, "Start at zero, so that the model is as it was; False starts with a standard normal distribution."
    )

    def validate(self) -> None:
        """Check the fields; one value of ``bias`` has another spelling in files of HF PEFT."""
        if self.bias == "fourier_only":
            self.bias = "fourierft_only"
        super().validate()
