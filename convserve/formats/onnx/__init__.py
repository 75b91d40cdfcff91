"""Importer of ONNX files: nodes of opset 6 to the newest become the operations of graph.ops."""

from convserve.formats.onnx.importer import load_onnx
from convserve.formats.onnx.reader import OnnxFile

__all__ = ["OnnxFile", "load_onnx"]
