"""Where random numbers of a network come from.

- At ``init_params``: ``use_generator`` makes a factory sample from one generator that a key seeds.
- At ``apply`` with a key: ``keyed_dropout`` makes dropout sample from the key (``dropout_masks``, ``keyed_attention``).
- At ``apply`` without a key: ``same_samples`` gives all agents of the loop the same numbers.
- What all of them need: which operations are random (``random_ops``), a mode that forbids them
  (``forbid_random_ops``), and the states of torch's generators (``rng_state``).

Keys themselves are in ``functional_marl.random``.
"""
