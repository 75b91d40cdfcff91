"""How the bundled network and its sample images were made: `make train`."""

__all__: list[str] = []
