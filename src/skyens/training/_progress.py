"""A progress bar for whoever waits longer than five seconds."""

from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def progress(
    iterable: Iterable[Item],
    *,
    total: int | None = None,
    description: str | None = None,
    delay: float = 5.0,
) -> Generator[Item, None, None]:
    """Yield from `iterable`, with a bar on standard error after `delay` seconds.

    What ends sooner prints nothing. `total` is the number of items, where the iterable
    has no length of its own; `description` stands before the bar.
    """
    from tqdm import tqdm

    yield from tqdm(iterable, description, total, delay=delay, dynamic_ncols=True)
