"""Options that several programs share: declared once, and flat wherever people write them.

Options live in the dataclass of what they steer (``SamplingConfig``, ``LocalityConfig``, ...). A
program's configuration has such a dataclass as a field, marked as flat:

    sampling: Annotated[SamplingConfig, Flat] = SamplingConfig()

On the command line its fields are plain flags (``--cfg``, not ``--sampling.cfg``), in Python plain
keyword arguments, and in records plain names.
"""

import contextlib
import dataclasses
import difflib
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from lpd.errors import InputError

Flat: Any = tyro.conf.OmitArgPrefixes
"""Marks a field whose dataclass's fields count as the configuration's own."""
YOUNGER = "younger"
"""Metadata of a configuration's field that earlier versions did not have."""

CALLED_ELSEWHERE = "called elsewhere"
"""Metadata of a field: what other libraries call it, names for a hint."""
READ_BY = "read by"
"""Metadata of a field: what makes its kind of what is given in Python, and leaves other values as
they are."""

_KINDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}
_MOST_CHARACTERS = 60  # of a value in a message

OptionsT = TypeVar("OptionsT")
CallableT = TypeVar("CallableT", bound=Callable[..., Any])


def flatten(options: Any) -> dict[str, Any]:
    """The fields of a dataclass instance by name; those of flat fields in their place."""
    values: dict[str, Any] = {}
    for field, nested in _fields(type(options)):
        value = getattr(options, field.name)
        if nested is not None:
            values |= flatten(value)
        else:
            values[field.name] = dataclasses.asdict(value) if _is_dataclass(value) else value
    return values


def from_flat(options_class: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """The dataclass instance with these fields, and defaults for the others.

    Numbers of numpy and torch become Python's.

    Raises:
        TypeError: there is no field of a name; the message has the nearest.
        InputError: a value is out of range, or no value of its field's kind, such as text for a
            number.
    """
    names = [parameter.name for parameter in parameters(options_class)]
    for name in values:
        if name not in names:
            called = _called_elsewhere(options_class).get(name)
            nearest = [called] if called else difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(names)}"
            raise TypeError(f"there is no option {name!r}; {hint}")
    return _build(options_class, values)


def _called_elsewhere(options_class: type) -> dict[str, str]:
    """Names of the fields by what other libraries call them."""
    names: dict[str, str] = {}
    for field, nested in _fields(options_class):
        if nested is not None:
            names |= _called_elsewhere(nested)
        names |= dict.fromkeys(field.metadata.get(CALLED_ELSEWHERE, ()), field.name)
    return names


def _build(options_class: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    types = get_type_hints(options_class)
    arguments: dict[str, Any] = {}
    for field, nested in _fields(options_class):
        if nested is not None:
            arguments[field.name] = _build(nested, values)
        elif field.name in values:
            read = field.metadata.get(READ_BY, _as_it_is)
            value = read(values[field.name])
            arguments[field.name] = _checked(field.name, value, types[field.name])
    return options_class(**arguments)


def _as_it_is(value: Any) -> Any:
    return value


def _checked(name: str, value: Any, annotation: Any) -> Any:
    """A value as its field has it; fields of tuples and the like are their dataclasses' concern."""
    if get_origin(annotation) not in (None, Union, UnionType):
        return value
    kinds = get_args(annotation) or (annotation,)
    if not all(kind in _KINDS or kind is type(None) for kind in kinds):
        return value
    if value is None and type(None) in kinds:
        return value
    for kind in kinds:
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            return _as(kind, value)
    expected = " or ".join(_KINDS.get(kind, "None") for kind in kinds)
    told = " ".join(repr(value).split())[:_MOST_CHARACTERS]
    raise InputError(f"{name} must be {expected}, got {told}")


def _as(kind: Any, value: Any) -> Any:
    # Truth values pass for 0 and 1, and those of arrays and tensors as well.
    is_truth = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if kind is bool and is_truth:
        return bool(value)
    if kind is int and not is_truth:
        return operator.index(value)
    if kind is float and not is_truth and not isinstance(value, str | bytes):
        return float(value)
    if kind in (str, Path) and isinstance(value, kind):
        return value
    raise TypeError


def parameters(options_class: type) -> list[inspect.Parameter]:
    """The fields as keyword parameters, flat fields in their place: for signatures and help."""
    types = get_type_hints(options_class)  # without what tells tyro how to show them
    result: list[inspect.Parameter] = []
    for field, nested in _fields(options_class):
        if nested is not None:
            result += parameters(nested)
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        result.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
                annotation=types[field.name],
            )
        )
    return result


def defaults(options_class: type) -> dict[str, Any]:
    """The default of every field that has one, flat fields in their place."""
    return {
        parameter.name: parameter.default
        for parameter in parameters(options_class)
        if parameter.default is not inspect.Parameter.empty
    }


def takes_options(options_class: type) -> Callable[[CallableT], CallableT]:
    """Have the signature of a function with ``**options`` tell what the options are."""

    def decorate(function: CallableT) -> CallableT:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        told = signature.replace(parameters=[*own, *parameters(options_class)])
        function.__signature__ = told  # type: ignore[attr-defined]
        return function

    return decorate


def _fields(options_class: type) -> Iterator[tuple[dataclasses.Field[Any], type | None]]:
    """The fields of a dataclass, each with its dataclass if it is flat, and else with None."""
    hints = get_type_hints(options_class, include_extras=True)
    for field in dataclasses.fields(options_class):
        base, *metadata = get_args(hints[field.name]) or (None,)
        yield field, base if any(each is Flat for each in metadata) else None


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
