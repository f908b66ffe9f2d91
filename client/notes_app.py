"""Add, find, learn, ask about and forget notes: `python client/notes_app.py add|find|learn|ask|forget WORDS`."""

import getpass
import os
import sys

from fedmem import Client
from fedmem.errors import FedmemError

verb, words = "".join(sys.argv[1:2]), " ".join(sys.argv[2:])
keystore, release = os.environ.get("NOTES_KEYSTORE", "auto"), os.environ.get("NOTES_RELEASE")
verbs = {
    "add": lambda memory: memory.add(words).decision.placement,
    "find": lambda memory: "\n".join(hit.text for hit in memory.search(words, k=3)),
    "learn": lambda memory: memory.learn(topic=words).id,
    "ask": lambda memory: memory.generate(words, max_new_tokens=32),
    "forget": lambda memory: memory.erase.plan(topic=words).execute().receipt,
}
try:
    with Client.open("me", keystore=keystore, release=release, ask=getpass.getpass) as memory:
        print(verbs.get(verb, lambda _: sys.exit(__doc__))(memory))
except FedmemError as error:
    sys.exit(str(error))
