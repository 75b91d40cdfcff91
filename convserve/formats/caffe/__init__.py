"""Importer of Caffe's networks: a .prototxt with its .caffemodel become a graph of the operations of graph.ops."""

from convserve.formats.caffe.files import CaffeFiles

__all__ = ["CaffeFiles"]
