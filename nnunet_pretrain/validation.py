"""One-line messages for what pydantic finds wrong."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: object, where: str) -> Model:
    """Builds a model and turns pydantic's report into one line a user can act on.

    Args:
        model: The model to build.
        values: What was read from a file or a plan.
        where: File or plan key the values come from, named first in the message.

    Raises:
        ValueError: A key is unknown (the message lists the right ones), missing, or has a wrong value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
            if problem["type"] == "extra_forbidden":
                allowed = _model_at(model, problem["loc"][:-1]).model_fields
                problems.append(f"unknown key '{key}'; the keys there are {', '.join(allowed)}")
            elif problem["type"] == "missing":
                problems.append(f"key '{key}' is missing")
            else:
                problems.append(f"{key}: {problem['msg']}, got {problem['input']!r:.120}")
        raise ValueError(f"{where}: {'; '.join(problems)}") from None


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel]:
    """Follows the path of an error through nested models, tuples and optional fields to the innermost model."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(iter(_models_in(field.annotation)), model)
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
