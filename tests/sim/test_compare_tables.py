"""The tables of a comparison hold its figures, in the format of a report."""

from fedmem.sim.compare import compare
from fedmem.sim.compare_tables import make_tables
from tests.sim.finished import Put


def test_tables_say_what_the_data_say(put: Put) -> None:
    names = [put(f"a{s}", seed=s) for s in (1, 2)]
    names += [put(f"b{s}", {"loss.public.fetched": 4.25, "config.cotrain.batch": 8}, seed=s) for s in (1, 2)]
    rows = {(table.title, row[0]): list(row[1:]) for table in make_tables(compare(names)) for row in table.rows}
    assert rows["What differs", "cotrain.batch"] == ["4", "4", "8", "8"]
    assert rows["Held-out loss", "public, fetched blocks"] == ["4.500", "4.500", "4.250", "4.250"]
    assert rows["Privacy", "ε against readers of released anchors"] == ["∞"] * 4
    assert rows["Privacy", "ε against the coordinator"] == ["∞"] * 4
    assert rows["Bytes", "sent by a device, whole run"] == ["800 B"] * 4
    (difference,) = (
        row
        for table in make_tables(compare(names))
        if table.id == "differences"
        for row in table.rows
        if "fetched" in row[1]
    )
    assert list(difference) == ["B − A", "public, fetched blocks", "−0.2500", "−0.2500 to −0.2500", "1, 2"]
