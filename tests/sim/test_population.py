"""A population is all text of a run, each piece in one place."""

from fedmem.policy.policy import Policy
from fedmem.sim import population, scenario
from fedmem.sim.sources import chats


def test_a_population_of_people_has_fresh_noise_and_public_text_of_its_own(invented):
    data = scenario.load("chats").to_dict()
    data["public"] |= {"devices": 12, "heldout_share": 0.2, "documents": 400}
    built = population.build(scenario.from_dict(data), 7, None, Policy.load())
    assert not built.generated
    assert len(built.devices) == 12
    assert not set(built.coordinator) & {item.text for items in built.devices for item in items}
    assert chats.ATTRIBUTION in built.attribution
    assert built.learned == []
