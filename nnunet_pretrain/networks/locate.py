"""Finding a class by its dotted path and calling it with named arguments, with errors a user can act on."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

EXTRAS = {"monai": 'pip install "nnunet-pretrain[monai]"'}


def locate(path: str) -> Any:
    """Imports what a dotted path names.

    Args:
        path: Such as "monai.networks.nets.SegResNet".

    Raises:
        ValueError: Its package is not installed (the message says what to install), or the path is wrong.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ValueError(f"'{path}' is no dotted path; expected one such as 'monai.networks.nets.SegResNet'")
    package = module_name.partition(".")[0]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if missing == package:
            remedy = EXTRAS.get(package, f"install the package that provides '{package}'")
            raise ValueError(f"'{path}' needs the package '{package}', which is not installed: {remedy}") from None
        if f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(f"'{path}' is wrong: there is no module '{missing}'") from None
        raise ValueError(f"'{path}' cannot be imported: it needs '{missing}', which is not installed") from error
    if not hasattr(module, name):
        known = [other for other in dir(module) if isinstance(getattr(module, other), type)]
        near = difflib.get_close_matches(name, known, n=3) or known[:9]
        raise ValueError(f"'{path}' is wrong: module '{module_name}' has no '{name}'; near it are {near}")
    return getattr(module, name)


def locate_network(path: str) -> type[nn.Module]:
    """Imports a network class.

    Raises:
        ValueError: As `locate`, or the path names something else than a class of `torch.nn.Module`.
    """
    found = locate(path)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"'{path}' is no network: expected a class derived from torch.nn.Module, found {found!r:.80}")
    return found


def check_arguments(path: str, called: type, arguments: Mapping[str, Any]) -> None:
    """Compares arguments with what a class takes.

    Raises:
        ValueError: An argument does not exist (the message lists those that do), or a required one is missing.
    """
    parameters = inspect.signature(called).parameters
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = sorted(set(arguments) - set(named))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ValueError(
            f"{path} has no argument {', '.join(map(repr, unknown))}; its arguments are {', '.join(named)}"
        )
    required = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    if required:
        raise ValueError(
            f"{path} needs the argument {', '.join(map(repr, required))}; given are {', '.join(arguments)}"
        )
