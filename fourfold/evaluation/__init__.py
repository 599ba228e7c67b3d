"""What a model can do: held-out text, choices, pairs and exact answers from local files, with intervals.

tasks.py     files -> tasks           scoring.py    log probabilities of many texts
measures.py  tasks -> figures         intervals.py  how sure a figure is, and a difference of two
"""
