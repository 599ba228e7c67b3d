"""Models larger than RAM: dense weights stay, routed experts come from disk into a cache of slots.

memory.py    sizes as users write them, and how much RAM is free
budget.py    what lies where within a budget
table.py     where each expert's bytes lie on disk
copy.py      a page-aligned copy of the experts, for faster reads
counts.py    how often each expert is chosen
files.py     files read past the page cache and watched for change, and new ones
reader.py    disk -> slot
queue.py     reads in flight
policy.py    which expert to evict
cache.py     which expert is in which slot
slots.py     the memory itself
predict.py   which experts a layer will choose
split.py     some experts on a device, the others here
store.py     all of it behind the model's `ExpertSource`
"""

from fourfold.tiers.budget import Plan, plan, plan_beside
from fourfold.tiers.store import TieredExperts

__all__ = ["Plan", "TieredExperts", "plan", "plan_beside"]
