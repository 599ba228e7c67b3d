"""From a teacher behind an API to a data set, and from that to a student: what `fourfold distil` does.

config.py   the strict TOML file          prompts.py   what is asked
client.py   one question to the teacher   collect.py   all of them: concurrent, capped, resumed
filters.py  what is kept                  dataset.py   the data set and its card
student.py  training, before and after
"""
