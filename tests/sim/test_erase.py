"""Private text in the clear is found wherever it lies, and the loss after an erasure comes from a fresh process."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from fedmem.errors import FedmemError
from fedmem.sim.context import Simulation
from fedmem.sim.phases import erase


def test_a_piece_of_every_private_record_is_searched_for(started: Simulation) -> None:
    pieces = erase.search_pieces(started)
    records = [item.text for placed in started.placed for item in placed.items if item.declared]
    held_out = [text for texts in started.population.private_heldout.values() for text in texts]
    assert len(pieces) >= len(records) + len(held_out)
    for text in records + held_out:
        assert any(piece in text.encode() for piece in pieces.values())
    public = "\n".join(started.population.coordinator + started.population.heldout).encode()
    assert not any(piece in public for piece in pieces.values())


@pytest.mark.parametrize("text", ["", "short", "".join(map(chr, range(0xC0, 0x180))), "".join(map(chr, range(33, 65)))])
def test_a_piece_is_the_middle_of_a_record_of_any_length(text: str) -> None:
    piece = erase._middle(text)
    assert len(piece) == min(len(text.encode()), erase.NEEDLE)
    at = text.encode().index(piece)
    assert abs(at - (len(text.encode()) - at - len(piece))) <= 1


def test_a_run_folder_without_private_text_has_no_residue_and_a_planted_piece_is_one(sim: Simulation) -> None:
    assert erase.count_residue(sim) == 0
    record = next(item.text for placed in sim.placed for item in placed.items if item.declared)
    (sim.folder.receipts / "debug.log").write_bytes(b"\0" * 4000 + record.encode())
    assert erase.count_residue(sim) == 1


def test_where_nothing_was_learned_only_the_residue_is_counted(started: Simulation) -> None:
    bare = replace(started)
    vars(bare).update(population=replace(started.population, learned=[]), placed=started.placed)
    assert erase.erase_phase(bare) == {"residue": {"before": 0, "after": None}}


@pytest.mark.parametrize("process", [subprocess.CompletedProcess([], 1, "", "a record"), None])
def test_the_loss_is_what_the_fresh_process_prints(started: Simulation, monkeypatch: Any, process: Any) -> None:
    commands = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return process or subprocess.CompletedProcess(command, 0, '{"loss": 5.0625}', "")

    monkeypatch.setattr(subprocess, "run", run)
    if process is None:
        assert erase.fresh_process_loss(started, 1, "notes") == 5.0625
    else:
        with pytest.raises(FedmemError, match="fresh process") as raised:
            erase.fresh_process_loss(started, 1, "notes")
        assert "record" not in str(raised.value)
    assert commands == [[sys.executable, "-m", "fedmem.sim.measure", "small", "1", "notes"]]
