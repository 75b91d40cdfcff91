"""Progress bars: silent for what is quick, rows per second and time left for what is not."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from convserve.progress import ProgressBar

ROOT = Path(__file__).parents[1]


def test_quick_work_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("rows of scores", total=3) as bar:
        for _ in range(3):
            bar.advance(1)
        assert not bar.shown
    assert capfd.readouterr() == ("", "")


def test_slow_work_shows_a_bar_on_stderr_before_its_first_row(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convserve.progress.SILENT_S", 0.05)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBar("rows of scores", total=30) as bar:
        end = time.monotonic() + 10
        while not bar.shown:
            assert time.monotonic() < end
            time.sleep(0.01)
        bar.advance(10)
        time.sleep(0.3)
    assert not bar.shown
    out, err = capfd.readouterr()
    assert out == ""
    assert "rows of scores" in err
    assert "10 of 30 rows" in err
    assert "left" in err


def test_a_bar_that_is_not_wanted_never_appears(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convserve.progress.SILENT_S", 0.01)
    with ProgressBar("rows of scores", enabled=False) as bar:
        time.sleep(0.1)
        bar.advance(1)
        assert not bar.shown
    assert capfd.readouterr() == ("", "")


def test_the_text_has_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("convserve.progress.time.monotonic", lambda: now[0])
    with ProgressBar("rows", total=1000, enabled=False) as bar:
        now[0] = 102.0
        assert bar.text() == "0 of 1000 rows, 0.0/s"
        bar.advance(20)
        assert bar.text() == "20 of 1000 rows, 10.0/s, 1:38 left"
        bar.total = 100_020
        assert bar.text() == "20 of 100020 rows, 10.0/s, 2:46:40 left"
        bar.total = None
        assert bar.text() == "20 rows, 10.0/s"


def test_rich_is_imported_only_for_a_bar_that_is_shown() -> None:
    code = (
        "import sys\nfrom convserve.progress import ProgressBar\n"
        "with ProgressBar('rows') as bar: bar.advance(1)\nprint('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
