"""The command line: one file per noun, no logic; what a command does lies in the rooms below."""
