"""Tell mkdocstrings that what a room re-exports, `from ... import X as X`, is public."""

from typing import Any

import griffe


class Reexports(griffe.Extension):
    """Mark as public what the package's rooms import from their own private files."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Mark the names of each room."""
        for room in pkg.modules.values():
            for member in room.members.values():
                if isinstance(member, griffe.Alias):
                    member.public = member.target_path.startswith(f"{room.path}._")
