"""Huge images: rows from where they lie, maps written row by row to where they shall lie, and gone on with."""

from convserve.scenes.opening import is_scene, open_scene, scene_rows
from convserve.scenes.overview import overview
from convserve.scenes.record import shared_facts
from convserve.scenes.sinks import ENDINGS, is_output
from convserve.scenes.source import RowSource, checked_channels
from convserve.scenes.writer import MapWriter, WrittenMap

__all__ = [
    "ENDINGS",
    "MapWriter",
    "RowSource",
    "WrittenMap",
    "checked_channels",
    "is_output",
    "is_scene",
    "open_scene",
    "overview",
    "scene_rows",
    "shared_facts",
]
