"""The picture of a comparison is whole on its own and has the page's colours."""

import copy
import re
from xml.etree import ElementTree

from fedmem.pages import FOLDER
from fedmem.sim import compare_plots, plots
from fedmem.sim.compare import compare
from tests.sim.finished import Put


def test_the_picture_is_whole_on_its_own(put: Put) -> None:
    names = [put("a<b&c"), put("b", seed=8), put("c", {"config.cotrain.batch": 8, "loss.by_phase": []})]
    rows = compare(names)["runs"]
    svg = compare_plots.draw_picture(rows)
    tree = ElementTree.fromstring(svg)
    said = "".join(tree.itertext())
    assert "A: mini, seeds 7, 8" in said
    assert "held-out loss, nats a token" in said
    assert "tokens trained on, thousands" in said
    assert compare_plots.LIGHT["--series-1"] in svg
    assert "var(" not in svg
    assert not any(colour in svg for colour in plots.VARIABLES)
    assert re.findall(r'href="(?!#)|url\((?!#)|@import', svg) == []
    assert compare_plots.draw_picture(copy.deepcopy(rows)) == svg
    odd = compare_plots.draw_picture(compare(["a<b&c", put("模型$1$", seed=9)])["runs"])
    assert "seeds 7, 9" in "".join(ElementTree.fromstring(odd).itertext())
    odd = compare_plots.draw_picture(compare(["c", "模型$1$"])["runs"])
    assert "B: 模型$1$" in "".join(ElementTree.fromstring(odd).itertext())


def test_the_pictures_colours_are_the_pages() -> None:
    root = (FOLDER / "style.css").read_text().split(":root {")[1].split("}")[0]
    said = dict(re.findall(r"(--[\w-]+): (#\w+)", root))
    assert {name: said[name] for name in compare_plots.LIGHT} == compare_plots.LIGHT
    assert set(compare_plots.LIGHT) == set(plots.VARIABLES.values())
