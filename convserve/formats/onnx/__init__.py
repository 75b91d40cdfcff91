"""Importer of ONNX files: nodes of opset 7 to the newest become the operations of graph.ops."""

from convserve.formats.onnx.importer import load_onnx

__all__ = ["load_onnx"]
