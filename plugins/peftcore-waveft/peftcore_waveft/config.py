"""WaveFTConfig: what WaveFT can be asked."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

from peftcore.adapters.spectral import SpectralConfig
from peftcore.config import option
from peftcore_waveft.wavelets import wavelet_names


class WaveFTConfig(SpectralConfig, method="waveft"):
    """Wavelet fine-tuning, W' = W + scaling · D⁻¹(S) with a sparse spectrum S (arXiv 2505.12532).

    D⁻¹ is the inverse wavelet transform in two dimensions, of one level.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    n_frequency: int = option(
        2592, "Number of entries of the spectrum that train.", at_least=1, pattern="n_frequency_pattern"
    )
    scaling: float = option(25.0, "What the transformed spectrum is multiplied by.")
    wavelet_family: str = option("db1", "The wavelet: any discrete one of PyWavelets'; 'db1' is Haar's.")
    use_idwt: bool = option(True, "Transform the spectrum; if not, its entries are those of the change themselves.")
    boundary: Literal["zero", "periodization"] = option(
        "zero",
        "What is beyond the spectrum's ends: zeros, with which waves are cut off there, or its other end.",
        extension=True,
    )
    proportional_parameters: bool = option(
        False, "Share the entries out in proportion to the layers' sizes; n_frequency is then the mean of a layer's."
    )

    def validate(self) -> None:
        """Check the fields, and that there is such a wavelet."""
        super().validate()
        known = wavelet_names()
        if self.wavelet_family not in known:
            near = ", ".join(get_close_matches(self.wavelet_family, known)) or "db1"
            self.refuse(
                "wavelet_family",
                f"there is no discrete wavelet {self.wavelet_family!r}; near are {near}, and "
                "pywt.wavelist(kind='discrete') lists all",
            )
