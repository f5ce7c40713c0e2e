"""How an image becomes a network's input: the numbers, not the code that applies them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocess:
    """Size and normalisation that a network expects of its input.

    RGB pixel values in [0, 1] are normalised as `(x - mean) / std`. To evaluate, resize the short
    side to `resize` pixels and cut out the centre `size` by `size`.

    Args:
        size: side of the square input, pixels.
        mean: a value per channel, red first, on the [0, 1] scale.
        std: a value per channel, red first, on the [0, 1] scale.
        crop: `size` / resized short side, in (0, 1].
        interpolation: name of the resampling filter: "bilinear", "bicubic", ...
        stretch: resize both sides to `resize`, whatever the shape of the image: all of it is seen.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: float = 0.875
    interpolation: str = "bilinear"
    stretch: bool = False

    @property
    def resize(self) -> int:
        """Length of the short side before the centre is cut out, pixels."""
        return round(self.size / self.crop)
