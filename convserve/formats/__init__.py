"""Networks in files: ONNX in, and our own container in and out."""

__all__: list[str] = []
