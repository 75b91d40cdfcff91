"""docs/hardening.md: every test that it names is there; and the server that nobody set up."""

import re
from pathlib import Path

from convserve.server import Server
from convserve.server.options import OPTIONS

ROOT = Path(__file__).parents[1]


def test_every_test_that_is_named_is_there() -> None:
    text = (ROOT / "docs" / "hardening.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 50
    there = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= there, sorted(named - there)


def test_the_default_address_is_this_machine_alone() -> None:
    assert OPTIONS["host"].default == "127.0.0.1"
    assert Server.__init__.__kwdefaults__["host"] == "127.0.0.1"
