"""Notes that remember, answer and forget: `python client/notes_app.py add|find|learn|ask|forget WORDS`."""

import getpass
import os
import sys

from fedmem import Client

verb, words = sys.argv[1], " ".join(sys.argv[2:])
keystore, release = os.environ.get("NOTES_KEYSTORE", "auto"), os.environ.get("NOTES_RELEASE")
with Client.open("me", keystore=keystore, release=release, ask=getpass.getpass) as memory:
    if verb == "add":
        print(memory.add(words).decision.placement)
    elif verb == "find":
        print(*[hit.text for hit in memory.search(words, k=3)], sep="\n")
    elif verb == "learn":
        print(memory.learn(topic=words).id)
    elif verb == "ask":
        print(memory.generate(words, max_new_tokens=32))
    elif verb == "forget":
        print(memory.erase.plan(topic=words).execute().receipt)
