"""The device sources: where they lie, and what their argument structs hold.

The structs are read by a parser of the little C++ that they may be written in; anything else in one
is an error, so that Python and device code cannot disagree about a layout.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from embstore.errors import InternalError

HEADER_ROOMS = ("core", "cuda")

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
KERNEL = re.compile(r"\bEMB_KERNEL(?:_RESIDENT)?\s*\(([^)]*)\)")
NAMES = re.compile(r"\s*(\w+)\s*,\s*(\w+)\s*(?:,\s*\d+\s*)?")
STRUCT = re.compile(r"\bstruct\s+(?P<name>\w+)\s*(?P<body>\{[^{}]*\}\s*;|[{:])")
POINTER = r"(?:const\s+)?[A-Za-z_][\w:]*(?:\s+const)?(?:\s*\*(?:\s*const\b)?)+\s*"
FIELD = re.compile(
    rf"(?:(?P<type>uint64_t|int64_t|double)\s+|{POINTER})(?P<name>(?!const\b)[A-Za-z_]\w*)"
)


def code_of(text: str) -> str:
    """Return a source without comments and preprocessor lines."""
    return DIRECTIVE.sub("", COMMENT.sub(" ", text))


# From the names of a struct's fields, in order, to their types: uint64_t, int64_t, double, pointer.
Fields = Mapping[str, str]


def fields_of(struct: str, text: str, where: str) -> Fields | None:
    """Return the fields of a struct in a source, None if it is not there.

    Raises
    ------
    InternalError
        If it is there twice, or holds anything but pointers, uint64_t, int64_t and double, one a
        declaration.
    """
    found = [m["body"] for m in STRUCT.finditer(code_of(text)) if m["name"] == struct]
    if not found:
        return None
    if len(found) > 1:
        raise InternalError(f"{where}: struct {struct} is defined {len(found)} times")
    if not found[0].startswith("{") or not found[0].endswith(";"):
        raise InternalError(f"{where}: struct {struct} must hold fields alone")
    declarations = [d.strip() for d in found[0].rstrip("; \t\n").strip("{}").split(";")]
    if declarations.pop() or not declarations:
        raise InternalError(
            f"{where}: struct {struct} must hold at least one field, each with its ;"
        )
    fields = [FIELD.fullmatch(declaration) for declaration in declarations]
    for declaration, field in zip(declarations, fields, strict=True):
        if field is None:
            raise InternalError(
                f"{where}: struct {struct}: a field must be one pointer, uint64_t, int64_t or "
                f"double, got {' '.join(declaration.split())!r}"
            )
    return {field["name"]: field["type"] or "pointer" for field in fields if field is not None}


@dataclass(frozen=True)
class Sources:
    """The folders of the device sources.

    Parameters
    ----------
    include
        What is passed to a compiler as ``-I``; holds ``embstore/core`` and ``embstore/cuda``.
    kernels
        The folder of the ``.cu`` files; each is a translation unit.
    """

    include: Path
    kernels: Path

    def headers(self) -> list[Path]:
        """Return the headers that device code may include, sorted."""
        rooms = (self.include / "embstore" / room for room in HEADER_ROOMS)
        return sorted(path for room in rooms for path in room.glob("*.h"))

    def units(self) -> list[Path]:
        """Return the translation units, sorted."""
        return sorted(self.kernels.glob("*.cu"))

    def struct_fields(self, struct: str) -> Fields:
        """Return the fields, of 8 bytes each, of a struct of the headers of cuda/."""
        for path in self.headers():
            if path.parent.name == "cuda":
                fields = fields_of(struct, path.read_text(), path.name)
                if fields is not None:
                    return fields
        raise InternalError(f"struct {struct} is in no header of {self.include}/embstore/cuda")

    def arguments_by_unit(self) -> dict[str, dict[str, Fields]]:
        """Return the fields of the argument struct of each kernel, by unit and kernel.

        A struct is looked for in the file of its kernel, then in the headers of cuda/.
        """
        found: dict[str, dict[str, Fields]] = {}
        for path in self.units():
            text = path.read_text()
            kernels = found[path.stem] = {}
            for declared in KERNEL.findall(code_of(text)):
                names = NAMES.fullmatch(declared)
                if names is None:
                    raise InternalError(f"{path.name}: EMB_KERNEL({declared}) must name two things")
                kernel, struct = names.groups()
                if any(kernel in others for others in found.values()):
                    raise InternalError(f"{path.name}: there is another kernel named {kernel}")
                own = fields_of(struct, text, path.name)
                kernels[kernel] = self.struct_fields(struct) if own is None else own
        return found

    def kernel_arguments(self) -> dict[str, Fields]:
        """Return the fields of the argument struct of each kernel."""
        units = self.arguments_by_unit().values()
        return {kernel: fields for unit in units for kernel, fields in unit.items()}


@cache
def installed_sources() -> Sources:
    """Return the sources that came with this package, or, in an editable install, the repository's.

    Raises
    ------
    InternalError
        If they are at neither place, because the installation is not whole.
    """
    package = Path(__file__).resolve().parent.parent
    root = package.parent
    places = (
        Sources(package / "include", package / "cuda_src"),
        Sources(root / "include", root / "src" / "cuda"),
    )
    for place in places:
        if place.headers() and place.units():
            return place
    raise InternalError(
        f"the device sources of embstore are neither in {places[0].kernels} "
        f"nor in {places[1].kernels}"
    )


@cache
def _installed_arguments() -> dict[str, Fields]:
    return installed_sources().kernel_arguments()


def argument_fields(kernel: str) -> Fields:
    """Return the arguments of a kernel, in order; each has 8 bytes."""
    arguments = _installed_arguments()
    if kernel not in arguments:
        raise InternalError(f"there is no kernel named {kernel!r}; there are {sorted(arguments)}")
    return arguments[kernel]


@cache
def struct_fields(struct: str) -> Fields:
    """Return the fields, of 8 bytes each, of a struct of the headers of cuda/."""
    return installed_sources().struct_fields(struct)
