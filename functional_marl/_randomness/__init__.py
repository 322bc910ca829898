"""Random numbers: keyed dropout, initialization from a key, and the states of torch's generators."""
