"""What travels between client and server: the generated messages, and NumPy arrays to and from their bytes."""

__all__: list[str] = []
