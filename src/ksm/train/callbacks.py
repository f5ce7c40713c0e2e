"""What a run calls as it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ksm.data.folder import Folder
    from ksm.data.load import Skipped
    from ksm.train.loop import Progress


class Callback:
    """Called as learning goes on; here every method does nothing."""

    def scanned(self, folder: Folder, epochs: int) -> None:
        """The images were found; so many epochs follow."""

    def image(self) -> None:
        """One more image was decoded."""

    def skipped(self, files: list[Skipped]) -> None:
        """All images were decoded but these."""

    def attached(self, summary: dict[str, Any], start: str | None) -> None:
        """The model was made; what its method tells of it before training, and the name of the
        module where the task starts, None for the input."""

    def step(self, progress: Progress) -> None:
        """A training step is done."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done and validated."""
