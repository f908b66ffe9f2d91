"""The page of a comparison loads nothing, escapes every value, and repeats why a run is unsafe."""

import re

from fedmem.sim.compare import compare
from fedmem.sim.compare_page import render_page
from tests.sim.finished import Put


def test_the_page_loads_nothing_escapes_and_repeats_the_reason(put: Put) -> None:
    evil = '<script>alert("x")</script>'
    data = compare([put("a", {"scenario": evil, "config.about": evil}), put("b", {"config.anchor.preset": evil})])
    html = render_page(data)
    assert "<script" not in html
    assert "alert" in html
    assert re.findall(r"url\((?!#)|@import|https?:", html) == []
    banner = html.split('class="banner"')[1].split("</p>")[0]
    assert "A: three are too few to hide in; B: three" in banner
    assert html.count('<svg role="img"') == 1
    assert render_page(data) == html


def test_the_page_of_private_settings_has_no_banner(put: Put) -> None:
    noisy = {"epsilon.device": 9.0, "epsilon.device_reason": "Poisson sampling"}
    assert 'class="banner"' not in render_page(compare([put("a", noisy), put("b", noisy)]))
