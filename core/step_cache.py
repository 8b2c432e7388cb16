"""First-Block-Cache: a step whose first layer changes the tokens as it did in the last full step takes the other layers' change from there."""

from __future__ import annotations

from torch import Tensor


class StepCache:
    """What the last full step of one sampling left behind.

    Args:
        threshold: How much the first layer's change may differ from the last full step's, as a share of it (means of absolute values). At 0
            every step is full and exact; the larger, the more are spared.
    """

    def __init__(self, threshold: float):
        self.threshold, self.spared = threshold, 0
        """``spared``: how many steps went through the first layer alone."""
        self._first: Tensor | None = None
        self._after_first: Tensor | None = None
        self._rest: Tensor | None = None

    def spare(self, before: Tensor, after: Tensor) -> Tensor | None:
        """The tokens after the last layer, guessed of those ``before`` and ``after`` the first one; None where the step has to be done in full."""
        first = after - before
        if self._rest is not None and self._rest.shape == first.shape:
            apart = (first - self._first).abs().mean() / self._first.abs().mean()
            if apart < self.threshold:
                self.spared += 1
                return after + self._rest
        self._first, self._after_first = first, after.clone()  # the layers that follow may work in the place of ``after``
        return None

    def history(self) -> dict[str, Tensor | int | None]:
        """What the next steps depend on, as it stands between two steps; none of it is changed later."""
        return {"spared": self.spared, "first": self._first, "rest": self._rest}

    def restore(self, history: dict[str, Tensor | int | None]) -> None:
        """Be where the cache was whose ``history`` this is."""
        self.spared, self._first, self._rest = history["spared"], history["first"], history["rest"]

    def keep(self, last: Tensor) -> None:
        """Remember the tokens after the last layer of a full step."""
        self._rest, self._after_first = last - self._after_first, None
