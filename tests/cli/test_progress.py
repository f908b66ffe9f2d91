"""Progress talks on stderr only."""

import pytest

from fedmem.cli.progress import Bars, reporter


def test_off_a_terminal_one_line_per_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter() as progress:
        for step in range(3):
            progress("pretrain", step, 3)
        progress("rounds", 0, 4, "device 1")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "pretrain …\nrounds … device 1\n"


def test_bars_write_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars("pretrain", 0, 0)
        bars("pretrain", 2, 4, "half")
    out, err = capsys.readouterr()
    assert out == ""
    assert "pretrain" in err
