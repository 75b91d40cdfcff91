"""The models that a server answers for, by name."""

from typing import TYPE_CHECKING

from convserve.errors import InputError, ModelNotFoundError

if TYPE_CHECKING:
    from convserve.model import Model

__all__ = ["Repository"]


class Repository:
    """Loaded models by name; fixed while the server runs, so threads may read it without a lock."""

    def __init__(self, models: "dict[str, Model]") -> None:
        if not models:
            raise InputError("a server needs at least one model")
        for name in models:
            if not name or not name.isprintable():
                raise InputError(f"the model name {name!r} is empty or has characters that cannot be printed")
        self._models = dict(models)

    @property
    def names(self) -> list[str]:
        """The models' names, in the order in which they were given."""
        return list(self._models)

    def model(self, name: str) -> "tuple[str, Model]":
        """Return a model and its name; "" stands for the only one.

        Raises ModelNotFoundError for an unknown name, or for "" where there are several.
        """
        if not name and len(self._models) == 1:
            return next(iter(self._models.items()))
        if name in self._models:
            return name, self._models[name]
        known = ", ".join(self._models)
        if not name:
            raise ModelNotFoundError(f"the request names no model, but there are several: {known}")
        raise ModelNotFoundError(f"there is no model {name[:100]!r}; there is: {known}")
