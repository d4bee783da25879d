"""Real processes under faults drawn from a seed, and every promise held against what was seen.

``python -m scheduler.testing.chaos --seed 7 --minutes 15`` starts a control plane and several
nodes as a user would, sends them a load that rises and falls, and kills, stops, cuts off and
starves what it has started. What clients saw, what was done to whom, and what the store held at
the end are the *history*; :mod:`scheduler.testing.chaos.judge` knows nothing else.

``scenario`` decides what will happen, ``faults`` makes it happen to the ``cluster``, ``load`` are
the clients, ``recovery`` and ``report`` tell how long everything took.
"""
