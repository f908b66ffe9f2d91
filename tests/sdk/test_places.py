"""The default folder of a vault."""

import pytest

from fedmem.errors import UsageError
from fedmem.sdk.places import vault_root


def test_folder_names_do_not_spell_the_subject() -> None:
    assert "ana" not in vault_root("ana").name
    assert vault_root("ana") != vault_root("ann")
    assert vault_root("../../etc").parent == vault_root("x").parent
    with pytest.raises(UsageError):
        vault_root("")
