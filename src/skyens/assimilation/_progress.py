"""A progress bar of a loop that runs inside of a compiled program."""

from typing import Any

import jax
from jaxtyping import Array, Int


class Bar:
    """A bar on standard error for whoever waits longer than five seconds.

    It takes the number of the cycle that has ended, so cycles computed again in reverse
    mode do not count twice, and mapped experiments share one bar.
    """

    def __init__(self, total: int, description: str):
        """Set the number of cycles, and what stands before the bar."""
        self.total, self.description = total, description
        self.bar: Any = None

    def tell(self, number: Int[Array, ""]) -> None:
        """Report the end of cycle `number`, about a hundred times in all."""
        every = max(self.total // 100, 1)
        due = (number % every == every - 1) | (number == self.total - 1)
        due = due | (number == 0)
        show = lambda number: jax.debug.callback(self._show, number)
        jax.lax.cond(due, show, lambda number: None, number)

    def _show(self, number):
        from tqdm import tqdm

        done = int(number) + 1
        if self.bar is None:
            self.bar = tqdm(
                total=self.total, desc=self.description, delay=5.0, dynamic_ncols=True
            )
        self.bar.update(max(done - self.bar.n, 0))
        if done == self.total:
            self.bar.close()
            self.bar = None
