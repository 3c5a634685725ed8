"""Tell mkdocstrings what is public, and how Modules without an `__init__` are made."""

import re
from typing import Any

import griffe


class Reexports(griffe.Extension):
    """Mark as public what a room imports from its own files, `import X as X`."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Mark the names of each room, and sign the classes it defines."""
        for room in pkg.modules.values():
            for member in room.members.values():
                if isinstance(member, griffe.Alias):
                    member.public = member.target_path.startswith(f"{room.path}._")
            for file in room.modules.values():
                for cls in file.classes.values():
                    if "__init__" not in cls.members and _is_record(cls):
                        cls.set_member("__init__", _constructor(cls))


def _is_record(cls: griffe.Class) -> bool:
    return {str(base).split(".")[-1] for base in cls.bases} <= {"Module", "NamedTuple"}


def _constructor(cls: griffe.Class) -> griffe.Function:
    parameters = [
        griffe.Parameter(
            field.name,
            annotation=field.annotation,
            default=_default(str(field.value)) if field.value is not None else None,
            kind=griffe.ParameterKind.positional_or_keyword,
        )
        for field in cls.attributes.values()
        if "property" not in field.labels and field.annotation is not None
    ]
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters))


def _default(value: str) -> str | None:
    if not value.startswith("eqx.field("):
        return value
    found = re.search(r"default=([^,)]+)", value)
    return found[1] if found else None
